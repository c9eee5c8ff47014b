"""JSON text: values with the lines they begin on, and errors that say what was probably meant."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from lorakit.data.row import WrittenFloat
from lorakit.errors import DataError

SPACE = " \t\r\n\ufeff"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or leave the key out")


JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=WrittenFloat, parse_constant=_constant
)


def why(error: Exception, text: str = "") -> str:
    """The reason that a text is not JSON, with what was probably meant."""
    if not isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error or type(error).__name__}"
    hint = _hint(error, text)
    # A line is read without the spaces before it, and its columns are counted with them.
    before = len(text) - len(text.lstrip(SPACE)) if error.doc == text.strip(SPACE) else 0
    column = error.colno + before
    return f"broken JSON: {error.msg} at column {column}" + (f". {hint}" if hint else "")


def _hint(error: json.JSONDecodeError, text: str) -> str:
    at, line = error.pos, error.doc
    here, before = line[at : at + 5], line[:at].rstrip(SPACE)
    bare = text.strip(SPACE)
    if here.startswith("'") or (before.endswith("'") and bare.startswith("{'")):
        return (
            "Python's way to write a dict is not JSON (it has single quotes): write each row with "
            "json.dumps(row), not with str(row) or print(row)"
        )
    if here[:4] in ("True", "None") or here[:5] == "False":
        return "JSON writes true, false and null: write each row with json.dumps(row)"
    if here.startswith(("//", "#", "/*")) or bare.startswith(("//", "#", "/*")):
        return "JSON has no comments: remove the line"
    if here[:1] in tuple("“”„‘’"):
        return f'JSON has straight quotes alone: write " in place of {here[0]}'
    if error.msg == "Invalid \\escape":
        return "JSON writes a backslash as \\\\: write each row with json.dumps(row)"
    if here[:1] == "\0":
        return (
            "The file holds zero bytes here, as a crash or a full disk leaves them: remove them, or "
            "copy the file again"
        )
    if here[:1] in ("}", "]") and before.endswith(","):
        return f"There is a comma too many before {here[0]!r}: remove it"
    if error.msg == "Extra data" and here[:1] == ",":
        return "Remove the comma after the row, or write all rows between [ and ] in a .json file"
    if "\r" in bare:
        return (
            "The lines end in a carriage return alone, as old Macs wrote them: convert them, for "
            "example tr '\\r' '\\n' < IN > OUT"
        )
    if error.msg == "Extra data" and here[:1] in "{[":
        return "Write each row on a line of its own"
    if bare[:1] not in '{["' and ("," in bare or "\t" in bare) and error.pos == 0:
        return "If this is a table, rename the file to .csv or .tsv"
    return ""


class JsonText:
    """A text that holds JSON values from its line `first` of the file on."""

    def __init__(self, file: str, text: str, first: int) -> None:
        self.file, self.text, self.first = file, text, first
        self._counted, self._line = 0, first

    def skip(self, at: int) -> int:
        """Where the next character that is no space is."""
        while at < len(self.text) and self.text[at] in SPACE:
            at += 1
        return at

    def line(self, at: int) -> int:
        """The line of the file that a place is on."""
        if at < self._counted:
            self._counted, self._line = 0, self.first
        self._line, self._counted = self._line + self.text.count("\n", self._counted, at), at
        return self._line

    def value(self, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends."""
        try:
            return JSON.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            begun = self.line(at)
            broke_off = self._broken_off(error)
            line = self.line(error.pos if broke_off is None else broke_off)
            more = f" (the row begins on line {begun})" if begun != line else ""
            if broke_off is not None:
                what = "broken JSON: the row breaks off at the end of the line"
                raise DataError(f"{self.file}:{line}: {what}{more}") from None
            around = error.doc[error.doc.rfind("\n", 0, error.pos) + 1 :].split("\n", 1)[0]
            raise DataError(f"{self.file}:{line}: {why(error, around)}{more}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.file}:{self.line(at)}: {why(error)}") from None

    def _broken_off(self, error: json.JSONDecodeError) -> int | None:
        """Where the line before the error ends, if that is where something is missing."""
        before = self.text[: error.pos].rstrip(SPACE)
        if "\n" not in self.text[len(before) : error.pos] or not before:
            return None
        missing = error.msg in ("Expecting ',' delimiter", "Expecting ':' delimiter")
        missing = missing or self.text[error.pos : error.pos + 1] in ("{", "")
        return len(before) - 1 if missing else None

    def items(self, at: int) -> Iterator[tuple[int, int, Any]]:
        """(begin, end, value) of the items of a list that opens at a place; then its end, twice."""
        at = self.skip(at + 1)
        while not self.text.startswith("]", at):
            value, end = self.value(at)
            yield at, end, value
            at = self.skip(end)
            if self.text.startswith(",", at):
                at = self.skip(at + 1)
                if not self.text.startswith("]", at):
                    continue
                raise self.broken(at, "expected ',' or ']' after a row, and found a comma too many")
            if not self.text.startswith("]", at):
                raise self.broken(at, "expected ',' or ']' after a row")
        yield at + 1, at + 1, None

    def broken(self, at: int, what: str) -> DataError:
        """An error about a place."""
        return DataError(f"{self.file}:{self.line(at)}: broken JSON: {what}")
