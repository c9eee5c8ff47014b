"""Rows and their answers -> the bytes of one file: JSON lines, tables and Parquet.

What a row already was stays what it was. A table that becomes a table of the same kind keeps each
line's own text, quotes included, and gets the answer behind it; Parquet and Arrow that become Parquet
keep their schema. Between formats, JSON keeps the digits of numbers, and tables hold text: null is an
empty field there, and lists and objects are JSON.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorakit.data import Row
from lorakit.data.json_line import json_line
from lorakit.data.mapping import write_value
from lorakit.errors import DataError
from lorakit.serving.answering.row_answer import RowAnswer
from lorakit.serving.answering.spec import AnswerSpec

_DELIMITERS = {"csv": ",", "tsv": "\t"}


class TextWriter(Protocol):
    """Writes rows as lines of text."""

    def check(self, row: Row) -> None:
        """See that a row can be written.

        Raises:
            DataError: it cannot; the message names file and line.
        """

    def pieces(
        self, columns: Sequence[str], rows: Iterator[tuple[Row, RowAnswer]]
    ) -> Iterator[bytes]:
        """The bytes of the file, a row at a time.

        Args:
            columns: every column that a row has.
            rows: each row with its answer.
        """


def added(spec: AnswerSpec, answer: RowAnswer) -> dict[str, Any]:
    """The columns that an answer adds to its row."""
    name = spec.answer_column
    values: dict[str, Any] = {name: answer.text, f"{name}_probability": answer.probability}
    if spec.choices:
        shares = dict(zip(spec.choices, answer.shares, strict=True)) if answer.shares else None
        values[f"{name}_probabilities"] = shares
    if spec.bad_rows == "mark":
        values[f"{name}_error"] = answer.error
    return values


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line."""

    spec: AnswerSpec

    def check(self, row: Row) -> None:
        """See `TextWriter`."""
        json_line(row.fields, row.origin)

    def pieces(
        self, columns: Sequence[str], rows: Iterator[tuple[Row, RowAnswer]]
    ) -> Iterator[bytes]:
        """See `TextWriter`."""
        for row, answer in rows:
            yield f"{json_line({**row.fields, **added(self.spec, answer)}, row.origin)}\n".encode()


class Table:
    """CSV or TSV.

    Where all rows come from tables with one header, each keeps its own text.

    Args:
        spec: what is added.
    """

    def __init__(self, spec: AnswerSpec) -> None:
        self._spec = spec
        self._heads = set[tuple[str, str]]()

    def check(self, row: Row) -> None:
        """See `TextWriter`; whether all rows come from tables with one header is found here."""
        self._heads.add((row.table.header, row.table.delimiter) if row.table else ("", ""))
        if not self._kept:
            self._fields(row, list(row.fields))

    @property
    def _kept(self) -> bool:
        (header, delimiter), *others = self._heads
        own = _DELIMITERS[str(self._spec.format)]
        other = next(d for d in _DELIMITERS.values() if d != own)
        return bool(header) and not others and delimiter != other

    def pieces(
        self, columns: Sequence[str], rows: Iterator[tuple[Row, RowAnswer]]
    ) -> Iterator[bytes]:
        """See `TextWriter`."""
        own, begun = _DELIMITERS[str(self._spec.format)], False
        for row, answer in rows:
            new = [_cell(value, row.origin) for value in added(self._spec, answer).values()]
            if self._kept and (table := row.table) is not None:
                head, end, delimiter = table.header, table.newline, table.delimiter
                line = f"{table.record}{delimiter}{_line(new, delimiter)}{end}"
                head = f"{head}{delimiter}{_line(self._spec.columns, delimiter)}{end}"
            else:
                head = _line([*columns, *self._spec.columns], own) + "\n"
                line = _line([*self._fields(row, columns), *new], own) + "\n"
            yield (line if begun else head + line).encode()
            begun = True

    def _fields(self, row: Row, columns: Sequence[str]) -> list[str]:
        return [_cell(row.fields.get(name), f"{row.origin}: {name!r}") for name in columns]


def _cell(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(value)
    if isinstance(value, bytes | bytearray):
        raise DataError(f"{where} holds bytes, which text cannot hold: write to a .parquet file")
    return write_value(value, where)


def _line(values: Sequence[str], delimiter: str) -> str:
    text, end = io.StringIO(), "\r\n"  # a field that holds one of these is quoted
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerow(values)
    return text.getvalue().removesuffix(end)


def text_writer(spec: AnswerSpec) -> TextWriter:
    """The writer of a spec's format, where it is one of text."""
    return JsonLines(spec) if spec.format == "jsonl" else Table(spec)


def known_columns(spec: AnswerSpec, columns: Sequence[str], origin: str) -> None:
    """Refuse to add a column that the rows have.

    Raises:
        DataError: which one, and what to give.
    """
    taken = [name for name in spec.columns if name in columns]
    if not taken:
        return
    free = next(
        name
        for name in ("generated", "generated_answer", *(f"answer_{i}" for i in range(2, 99)))
        if not any(other == name or other.startswith(f"{name}_") for other in columns)
    )
    raise DataError(
        f"{origin}: the rows have a column {taken[0]!r} already, and it is kept as it is: give the "
        f"answers another name, for example --answer-column {free}"
    )
