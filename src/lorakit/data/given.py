"""Rows that the caller holds in memory, as a source beside files and ids of the hub."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lorakit.errors import DataError

GIVEN, GIVEN_HELD_OUT = "the rows you gave", "the held-out rows you gave"
_ORIGIN = re.compile(rf"row (\d+) of ({GIVEN}|{GIVEN_HELD_OUT})")
_PART = re.compile(r" \(row (\d+) of the line\)$")


class GivenRows:
    """Rows in memory, read as they are: a list of mappings, a datasets.Dataset, a pandas.DataFrame.

    `str()` of it is what messages and records call it. It is iterated once for each reading.
    """

    def __init__(self, rows: Any, name: str = GIVEN) -> None:
        self.name = name
        self._rows = _as_iterable(rows, name)
        self.form = form_of(rows)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"GivenRows({self.name!r})"

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its number, which counts from 1.

        Raises:
            DataError: there are none, or one is no mapping from column names.
        """
        number = 0
        for number, row in enumerate(self._rows, 1):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{origin(self.name, number)} is no mapping from column names to values, such "
                    f"as {{'prompt': …, 'completion': …}}: it is {row!r:.60} ({_kind(row)})"
                )
            for column in row:
                if not isinstance(column, str):
                    raise DataError(
                        f"{origin(self.name, number)}: the column {column!r} is no text "
                        f"({_kind(column)})"
                    )
            yield number, row
        if not number:
            raise DataError(f"{self.name}: there are no rows in them")


Source = str | GivenRows
"""Where rows are: a file, a folder, an id of the hub, or rows in memory."""


def as_source(rows: Any, name: str = GIVEN) -> Source:
    """What a Python user hands over, as one source.

    Args:
        rows: a path or an id, or the rows themselves.
        name: what messages call rows in memory.

    Raises:
        DataError: it is neither.
    """
    if isinstance(rows, str | Path):
        return str(rows)
    return rows if isinstance(rows, GivenRows) else GivenRows(rows, name)


def origin(file: str, line: int, part: int = 1) -> str:
    """Where a row comes from: "file:line", or "row 17 of the rows you gave".

    >>> origin("rows.jsonl", 17), origin("the rows you gave", 17), origin("rows.json", 1, 3)
    ('rows.jsonl:17', 'row 17 of the rows you gave', 'rows.json:1 (row 3 of the line)')
    """
    if file in (GIVEN, GIVEN_HELD_OUT):
        return f"row {line} of {file}"
    return f"{file}:{line}" + (f" (row {part} of the line)" if part > 1 else "")


def parts(text: str) -> tuple[str, int, int]:
    """The inverse of `origin`; line 0 where the text names none.

    >>> parts("rows.jsonl:17"), parts("row 17 of the rows you gave"), parts("prompt")
    (('rows.jsonl', 17, 1), ('the rows you gave', 17, 1), ('prompt', 0, 1))
    >>> parts("rows.json:1 (row 3 of the line)")
    ('rows.json', 1, 3)
    """
    if given := _ORIGIN.fullmatch(text):
        return given[2], int(given[1]), 1
    within = _PART.search(text)
    part = int(within[1]) if within else 1
    file, _, line = _PART.sub("", text).rpartition(":")
    return (file, int(line), part) if file and line.isdecimal() else (text, 0, 1)


def _as_iterable(rows: Any, name: str) -> Iterable[Any]:
    # By the class's name, so that pandas need not be installed.
    if _class_of(rows).startswith("pandas."):
        if type(rows).__name__ != "DataFrame":
            raise DataError(f"{name} are a pandas {type(rows).__name__}; give a DataFrame")
        # A missing value is None, as it is in JSON, and not NaN.
        found = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return [{name: _plain(value) for name, value in row.items()} for row in found]
    if isinstance(rows, Mapping) and _class_of(rows).startswith("datasets."):
        splits = ", ".join(map(repr, list(rows)[:6]))
        raise DataError(f"{name} are a DatasetDict of {splits}: give one of them, rows['train']")
    if isinstance(rows, Mapping):
        names = ", ".join(map(repr, list(rows)[:4]))
        raise DataError(f"{name} are one mapping (of {names}), not rows: give a list of mappings")
    if isinstance(rows, bytes | bytearray) or not isinstance(rows, Iterable):
        raise DataError(
            f"{name} are {_kind(rows)}: give a path, a list of mappings, a datasets.Dataset or a "
            "pandas.DataFrame"
        )
    return tuple(rows) if isinstance(rows, Iterator) else rows


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def form_of(rows: Any) -> Literal["json", "arrow"]:
    """ "arrow" where objects may hold a null for every key that another row has.

    Of `datasets`, where no column is JSON as it was written (its feature Json); of pandas, where a
    cell holds a numpy array, which is how read_parquet gives lists.
    """
    kind = _class_of(rows)
    if kind.startswith("datasets."):
        return "json" if "Json(" in str(getattr(rows, "features", "")) else "arrow"
    if not kind.startswith("pandas.") or type(rows).__name__ != "DataFrame":
        return "json"
    objects = [name for name, kind in rows.dtypes.items() if str(kind) == "object"]
    arrays = any(_is_array(cell) for name in objects for cell in rows[name].head(100))
    return "arrow" if arrays else "json"


def _is_array(value: Any) -> bool:
    return _class_of(value) == "numpy.ndarray"


def _plain(value: Any) -> Any:
    """numpy arrays, at any depth, as lists."""
    if _is_array(value):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float) and value != value:
        return None  # a null, where the array has numbers
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
