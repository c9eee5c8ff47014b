"""CSV and TSV -> rows whose values are the text that was written."""

import csv
import re
from collections.abc import Iterable, Iterator

from lorakit.data.files import lines
from lorakit.data.formats import DataFile
from lorakit.data.row import Row, TableText
from lorakit.errors import DataError

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}
_RULE = re.compile(r"\s*(:?-+:?\s*)?")


def table_rows(file: DataFile) -> Iterator[Row]:
    """The rows below the header.

    Where the header has one column only, and several by another delimiter, that one separates the
    columns: spreadsheets of many countries write semicolons.

    Raises:
        DataError: naming the line, where a row does not fit the header or a quote is never closed.
    """
    # The csv module refuses fields above 128 KiB by default, and has no setting for one reader alone.
    csv.field_size_limit(2**31 - 1)
    own = "," if file.format == "csv" else "\t"
    delimiter, skipped = _delimiter(file, own)
    notes = []
    if delimiter != own:
        notes.append(f"has its columns separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    text = _Recorder(lines(file))
    for _ in range(skipped):
        next(text)
    above = text.taken() if skipped else ""
    # strict: otherwise a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1 + skipped
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_broken(file, start, error)) from None
        written = text.taken()
        if not values:
            continue
        if header is None:
            header = _header(file, start, values)
            shown = above + written if above.lstrip().startswith("sep=") else written
            newline = "\r\n" if written.endswith("\r\n") else "\n"
            if not header[0]:
                notes.append("has a first column without a name (an index), which is not used")
            reading, first = " and ".join(notes), True
        elif len(header) > 1 and values == header:
            raise DataError(
                f"{file.name}:{start}: the header again, as where files were joined: remove the line"
            )
        elif delimiter == "|" and first and all(_RULE.fullmatch(v) for v in values):
            raise DataError(
                f"{file.name}:{start}: the line under the header of a Markdown table, which is not "
                "read: write the table as CSV"
            )
        elif len(values) != len(header):
            raise DataError(
                f"{file.name}:{start}: {len(values)} fields where the header has {len(header)} "
                f"({', '.join(map(repr, header[:8]))}); quote a field that holds {delimiter!r}"
            )
        else:
            named, first = _named(file, start, header, values), False
            table = TableText(shown.rstrip("\r\n"), written.rstrip("\r\n"), delimiter, newline)
            yield Row(file.name, start, named, form="table", reading=reading, table=table)


class _Recorder:
    """Lines on their way to a reader, and the text of those since it was last asked for."""

    def __init__(self, source: Iterable[str]) -> None:
        self._source, self._held = iter(source), list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._held.append(line := next(self._source))
        return line

    def taken(self) -> str:
        """The text of the lines since the last call."""
        text = "".join(self._held)
        self._held.clear()
        return text


def _delimiter(file: DataFile, own: str) -> tuple[str, int]:
    """What separates the columns, and how many lines stand before the header."""
    source = lines(file)
    skipped, first = 0, ""
    for first in source:
        if first.strip():
            break
        skipped += 1
    if first.startswith("sep=") and len(first.strip("\r\n")) == 5:
        delimiter = first[4]
        source.close()  # type: ignore[attr-defined]
        return delimiter, skipped + 1
    source.close()  # type: ignore[attr-defined]
    for delimiter in (own, *DELIMITERS):
        try:
            columns = next(csv.reader([first], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            continue
        if len(columns) > 1 and (delimiter == own or all(len(c) <= 64 for c in columns)):
            return delimiter, skipped
    return own, skipped


def _header(file: DataFile, line: int, names: list[str]) -> list[str]:
    for i, name in enumerate(names):
        if name.strip() and name in names[:i]:
            raise DataError(f"{file.name}:{line}: the header names the column {name!r} twice")
    if not any(name.strip() for name in names):
        raise DataError(
            f"{file.name}:{line}: no column of the header has a name; the first line of a table names "
            "its columns, such as prompt,completion"
        )
    return [name if name.strip() else "" for name in names]


def _named(file: DataFile, line: int, header: list[str], values: list[str]) -> dict[str, str]:
    # A first column without a name is an index, as pandas writes it; further ones are what a
    # spreadsheet adds, and hold nothing.
    named = {}
    for i, (name, value) in enumerate(zip(header, values, strict=True)):
        if name:
            named[name] = value
        elif i and value.strip():
            raise DataError(
                f"{file.name}:{line}: column {i + 1} of the header has no name, and holds "
                f"{value[:30]!r} here: name it in the first line, or remove it"
            )
    return named


def _broken(file: DataFile, line: int, error: csv.Error) -> str:
    if "new-line character" in str(error):
        return (
            f"{file.name}:{line}: broken {file.format.upper()}: the lines end in a carriage return "
            "alone, as old Macs wrote them: convert them, for example tr '\\r' '\\n' < IN > OUT"
        )
    return (
        f"{file.name}:{line}: broken {file.format.upper()}: {error} (a quote inside a quoted field is "
        'written twice: "")'
    )
