"""Templates over the columns of a row: '{question}' -> the text of its column."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from lorakit.data.row import Row
from lorakit.errors import ColumnError, ConfigError, DataError, did_you_mean

# What a shell leaves of a newline or a tab, a literal brace, a field, or a brace that is neither.
_PIECES = re.compile(
    r"(?P<escape>\\\\?[nt])|(?P<literal>\{\{|\}\})|\{(?P<path>[^{}]+)\}|(?P<stray>[{}])"
)
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\n": r"\n", r"\\t": r"\t"}


def write_value(value: Any, where: str) -> str:
    """A column's value as the text a model reads: strings as they are, the rest as JSON.

    JSON is written on one line, with ', ' and ': ', and letters beyond ASCII as themselves.

    Raises:
        DataError: a null, or a value that text cannot hold (bytes); `where` names it.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise DataError(f"{where} is null; give it a value or leave the row out")
    if isinstance(value, float) and value != value:
        raise DataError(f"{where} is no number (NaN); give it a value or leave the row out")
    return _json(value, where)


def _json(value: Any, where: str) -> str:
    # Not json.dumps: a number keeps the digits it was written with (3.50, 1e-4), which lie in the
    # float subclass that records.py reads numbers into and json.dumps would write anew.
    if isinstance(value, Mapping):
        pairs = (
            f"{json.dumps(k, ensure_ascii=False)}: {_json(v, where)}" for k, v in value.items()
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_json(v, where) for v in value) + "]"
    if isinstance(value, float | Decimal):
        return str(value)
    if isinstance(value, datetime | date | time):
        return json.dumps(value.isoformat())
    if value is None or isinstance(value, str | int):
        return json.dumps(value, ensure_ascii=False)
    raise DataError(f"{where} holds {type(value).__name__}, which cannot be written as text")


@dataclass(frozen=True)
class Mapper:
    """A template such as 'Question: {question}', ready to be filled from rows.

    `{a.b}` reads key b inside column a (or item 0 of a list: `{a.0}`); a column whose name itself
    holds the dot comes first. `{{` and `}}` are literal braces. ``\\n`` and ``\\t``, as a shell passes
    them on, are a newline and a tab; a second backslash before them makes them literal.

    >>> Mapper("prompt", r"{q}\\nA:").fill(Row("a.csv", 2, {"q": "Why?"}))
    'Why?\\nA:'

    Raises:
        ConfigError: a brace that opens or closes nothing.
    """

    option: str
    template: str

    def __post_init__(self) -> None:
        for piece in _PIECES.finditer(self.template):
            if piece["stray"] or (piece["path"] is not None and not piece["path"].strip()):
                at = self.template[max(0, piece.start() - 15) : piece.start() + 15]
                raise ConfigError(
                    f"{self.option} {self.template!r}: a single brace near {at!r}. Write {{column}} "
                    "for a column and {{ or }} for a literal brace"
                )
        if not self.columns:
            raise ConfigError(
                f"{self.option} {self.template!r} names no column, so every row would read the "
                "same; write {column} where the row's value belongs"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The paths that the template reads, in order."""
        return tuple(p["path"] for p in _PIECES.finditer(self.template) if p["path"])

    @property
    def written(self) -> str:
        """The template with its newlines and tabs in it, as they are filled in.

        >>> Mapper("prompt", r"{q}\\nA:").written
        '{q}\\nA:'
        """
        return _PIECES.sub(lambda m: _ESCAPES[m["escape"]] if m["escape"] else m[0], self.template)

    def fill(self, row: Row) -> str:
        """The template with the row's values in it.

        Raises:
            DataError: a column or key that the row does not have, or a value that is null.
        """

        def piece(match: re.Match[str]) -> str:
            if match["escape"]:
                return _ESCAPES[match["escape"]]
            if match["literal"]:
                return match["literal"][0]
            where = f"{row.origin}: {match['path']!r}"
            return write_value(_look_up(row, match["path"], self), where)

        return _PIECES.sub(piece, self.template)


def _look_up(row: Row, path: str, mapper: Mapper) -> Any:
    value: Any = row.fields
    rest, at = path, "the row"
    while True:
        if isinstance(value, Mapping):
            if rest in value:
                return value[rest]
            key, dot, tail = rest.partition(".")
            if key in value and dot:
                value, rest, at = value[key], tail, repr(key)
                continue
            names = [str(k) for k in value]
            what = "column" if value is row.fields else "key"
        else:
            key, dot, tail = rest.partition(".")
            if isinstance(value, list | tuple) and key.isdecimal() and int(key) < len(value):
                value, rest, at = value[int(key)], tail, f"item {key}"
                if not dot:
                    return value
                continue
            names, what = [], "key"
        raise ColumnError(
            f"{row.origin}: {at} has no {what} {key!r}, which {mapper.option} "
            f"{mapper.written!r} reads; {did_you_mean(key, names)}"
        )
