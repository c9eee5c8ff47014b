"""The file of answers: what each row must be like, and how it is written from the answers that were kept."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorakit.config import RunConfig
from lorakit.data import Row
from lorakit.errors import DataError
from lorakit.files.whole import write_file, write_pieces
from lorakit.serving.answering import kept
from lorakit.serving.answering.asked import AskedRows, Survey, digest_row
from lorakit.serving.answering.parquet import ParquetTable
from lorakit.serving.answering.row_answer import RowAnswer
from lorakit.serving.answering.spec import AnswerSpec
from lorakit.serving.answering.writing import TextWriter, text_writer

Report = Callable[[Mapping[str, Any]], None]
"""Takes "stage" (name, total), "progress" (done) and "note" (text) events."""


class OutputFile:
    """The file of answers, in the format of its name."""

    def __init__(self, config: RunConfig, spec: AnswerSpec) -> None:
        self._spec, data = spec, config.data
        self._text: TextWriter | None = None
        self._table: ParquetTable | None = None
        if spec.format == "parquet":
            self._table = ParquetTable(spec, data.data, data.max_rows)
        else:
            self._text = text_writer(spec)
        self.counts: tuple[int, int | None, int] = (0, None, 0)

    def check(self, row: Row) -> None:
        """See that a row can be written, and take its types into account.

        Raises:
            DataError: it cannot.
        """
        (self._table or self._text).check(row)  # type: ignore[union-attr]

    def settle(self) -> None:
        """All rows were checked."""
        if self._table is not None:
            self._table.settle()

    def write(self, out: Path, rows: AskedRows, found: Survey, place: Path, report: Report) -> None:
        """Write the file from the rows, read once more, and the answers that were kept.

        Raises:
            DataError: the rows are not those that were answered.
            OutputError: the disk is full.
        """
        pairs = self._pairs(rows, found, place, report)
        if self._text is not None:
            pieces = self._text.pieces(found.columns, pairs)
            write_pieces(out, pieces, what="answers", overwrite=True)
            return
        table = self._table
        assert table is not None
        write_file(out, lambda part: table.write(part, pairs), what="answers", overwrite=True)

    def _pairs(
        self, rows: AskedRows, found: Survey, place: Path, report: Report
    ) -> Iterator[tuple[Row, RowAnswer]]:
        answers = (answer for window in kept.answers_in(place) for answer in window)
        digest, count = hashlib.sha256(), 0
        unfinished, first, errors = 0, None, 0
        for count, row in enumerate(rows.read(), 1):
            answer = next(answers, None)
            if answer is None:
                break
            digest_row(digest, row)
            unfinished += not answer.finished
            first = first or (count if not answer.finished else None)
            errors += answer.error is not None
            if count % 1024 == 0:
                report({"kind": "progress", "done": count})
            yield row, answer
        if count != found.rows or digest.hexdigest() != found.sha256:
            raise DataError(
                f"{rows.sources[0]}: the rows changed while they were being answered; what was answered is "
                f"kept in {place}"
            )
        report({"kind": "progress", "done": count})
        self.counts = (unfinished, first, errors)
