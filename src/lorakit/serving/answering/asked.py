"""A file's rows, each with the prompt that it makes, or with the reason why it makes none."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from lorakit.data import Example, PromptForm, Row, Template, encode_prompt, read_rows
from lorakit.data.given import Source
from lorakit.data.json_line import json_line
from lorakit.errors import DataError, InputError
from lorakit.run.session import Session


@dataclass(frozen=True)
class AskedRow:
    """One row and its prompt.

    Attributes:
        row: with all its columns.
        example: what is asked; None where there is an error.
        ids: the prompt's tokens; empty where there is an error.
        error: why the row cannot be answered, with file and line.
    """

    row: Row
    example: Example | None = None
    ids: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class AskedRows:
    """The rows of sources, read anew each time.

    Attributes:
        sources: files, folders, ids of the hub, or rows in memory.
        form: how a row becomes what is asked.
        session: tokenizer and limits.
        template: how a prompt is written for the model.
        most: tokens of the longest answer, for which there must be room.
        lead: white space that stands before an answer, as it was trained.
        limit: read only the first N rows.
    """

    sources: Sequence[Source]
    form: PromptForm
    session: Session
    template: Template
    most: int
    lead: str = ""
    limit: int | None = None

    def read(self, start: int = 0) -> Iterator[Row]:
        """The rows from a place on, without their prompts."""
        return islice(read_rows(self.sources, self.limit), start, None)

    def asked(self, start: int = 0) -> Iterator[AskedRow]:
        """The rows from a place on, with their prompts.

        Raises:
            DataError: a file cannot be read any further. A row that cannot be answered raises
                nothing and says why.
        """
        for row in self.read(start):
            try:
                example = self.form.row(row)
                yield AskedRow(row, example, self._prompt(row, example))
            except DataError as error:
                yield AskedRow(row, error=str(error))

    # Asked once: a model's configuration takes longer to say so than a short prompt to be written.
    @cached_property
    def _embeddings(self) -> int:
        return self.session.embeddings

    @cached_property
    def _context(self) -> int:
        return self.session.context_length

    def _prompt(self, row: Row, example: Example) -> tuple[int, ...]:
        session = self.session
        ids = tuple(encode_prompt(example, session.tokenizer, self.template).tolist())
        if not ids:
            raise DataError(f"{row.origin}: the prompt is empty")
        if (id := max(ids)) >= self._embeddings:
            token = session.tokenizer.convert_ids_to_tokens(int(id))
            raise DataError(
                f"{row.origin}: the prompt has the token {id} ({token!r}), and the model has "
                f"embeddings for {self._embeddings:,} tokens: leave that text out"
            )
        if len(ids) + self.most > self._context:
            raise DataError(
                f"{row.origin}: the prompt has {len(ids):,} tokens; with {self.most:,} for the answer "
                f"(--max-new-tokens) it passes the {self._context:,} that the model reads"
            )
        return ids


@dataclass(frozen=True)
class Survey:
    """What is known of all rows before the first is answered.

    Attributes:
        rows: how many there are.
        sha256: of their content, in order.
        longest: tokens of the longest prompt.
        columns: every column that a row has, in the order in which they first came.
        bad: how many cannot be answered.
        first_bad: why the first of them cannot.
    """

    rows: int
    sha256: str
    longest: int
    columns: tuple[str, ...]
    bad: int
    first_bad: str | None


def survey(
    rows: AskedRows,
    look: Callable[[Row], None],
    done: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Read every row and write its prompt.

    Args:
        rows: what to read.
        look: told of every row; may raise where it cannot be written as the output needs it.
        done: told how many rows were read, now and then.

    Raises:
        DataError: a file cannot be read, or `look` refuses a row.
    """
    digest, columns = hashlib.sha256(), dict[str, None]()
    count = longest = bad = 0
    first_bad = None
    for asked in rows.asked():
        count += 1
        digest_row(digest, asked.row)
        columns.update(dict.fromkeys(asked.row.fields))
        look(asked.row)
        longest = max(longest, len(asked.ids))
        if asked.error is not None:
            bad += 1
            first_bad = first_bad or asked.error
        if count % 256 == 0:
            done(count)
    done(count)
    return Survey(count, digest.hexdigest(), longest, tuple(columns), bad, first_bad)


def digest_row(digest: Any, row: Row) -> None:
    """Add the content of a row to a hash."""
    try:
        text = row.table.record if row.table else json_line(row.fields, row.origin)
    except InputError:  # what JSON cannot hold
        text = repr(dict(row.fields))
    digest.update(hashlib.sha256(text.encode()).digest())
