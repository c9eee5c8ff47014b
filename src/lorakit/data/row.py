"""One row: its columns as they were written, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.data.given import origin

Form = Literal["json", "table", "arrow"]
"""How values come: nested as written; as text alone (CSV); or with a null for every absent key."""


@dataclass(frozen=True)
class TableText:
    """A row of a table as its file has it.

    header, record: the text of the header and of the row, quotes included, without their line ends.
    delimiter: between columns. newline: what ends the header's line.
    """

    header: str
    record: str
    delimiter: str
    newline: str


@dataclass(frozen=True)
class Row:
    """One row: its columns, file and line. Lines count from 1 (for Parquet and ids: rows).

    form: how its values come, see `Form`. reading: what had to be decided to read its file, as a
    clause about the file ("holds its rows in the list under 'data'"); empty for the usual form.
    table: of a table, its text; None for other files. part: which of the rows that begin on its line.
    """

    file: str
    line: int
    fields: Mapping[str, Any]
    form: Form = "json"
    reading: str = ""
    table: TableText | None = None
    part: int = 1

    @property
    def origin(self) -> str:
        """ "file:line", or "row 17 of the rows you gave"; no other row of the file has the same."""
        return origin(self.file, self.line, self.part)


class WrittenObject(dict[str, Any]):
    """An object of a JSON column of Arrow: it has the keys that were written, nulls among them."""


class WrittenFloat(float):
    """A number that still knows its digits: 3.50 stays 3.50 when it is written into a text."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        """Keep the text beside the value."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text
