"""Files and hub ids -> rows that know their file and line, with every value as it was written.

Only Hugging Face ids go through `datasets`. For files it would change the rows: its CSV reader
turns "001" into 1 and "NA" into None, its JSON reader turns "2024-01-01" into a datetime and adds a
null for every key that another row has, and neither knows line numbers. The standard library's
json and csv read them line by line instead, and pyarrow reads Parquet batch by batch without a copy
in a cache.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from lorakit.data.arrow import arrow_rows
from lorakit.data.columns import is_row
from lorakit.data.documents import json_rows
from lorakit.data.files import files_of, lines
from lorakit.data.formats import DataFile
from lorakit.data.given import GivenRows, Source, form_of
from lorakit.data.row import Row
from lorakit.data.tables import DELIMITERS, table_rows
from lorakit.errors import DataError
from lorakit.extras import need


def read_rows(sources: Sequence[Source], limit: int | None = None) -> Iterator[Row]:
    """The rows of all sources in their order, read one by one as the caller takes them.

    sources: files, folders, hub ids or rows in memory. limit: read only the first N rows.
    Only one line (of .json: one file) is held in memory at a time.

    Raises:
        DataError: naming file and line, where a source or a row cannot be read.
    """
    return islice(_all_rows(sources), limit)


def _all_rows(sources: Iterable[Source]) -> Iterator[Row]:
    for source in sources:
        if isinstance(source, GivenRows):
            for number, columns in source:
                yield Row(source.name, number, columns, form=source.form)
            continue
        files = files_of(source)
        if files is None:
            yield from _hub_rows(source)
            continue
        for file in files:
            empty = True
            for row in rows_of_file(file):
                empty = False
                yield row
            if empty:
                raise DataError(f"{file.name}: the file holds no rows")


def rows_of_file(file: DataFile) -> Iterator[Row]:
    """The rows of one file, by its format.

    Raises:
        DataError: as `read_rows`.
    """
    return arrow_rows(file) if file.format in ("parquet", "arrow") else _by_content(file)


def _text_rows(file: DataFile) -> Iterator[Row]:
    """Plain text: a row is a paragraph; where no line is blank, a row is a line.

    Paragraphs stand between blank lines. Read line by line, as `datasets` does by default, a text
    that is wrapped at 80 characters would become rows that end in the middle of a sentence.
    """
    paragraphs = _has_paragraphs(file)
    what = "paragraph, and blank lines stand between them" if paragraphs else "line"
    reading = f"is plain text, and each row is a {what}"
    held: list[str] = []
    start = 0
    for number, line in enumerate(lines(file), 1):
        text = line.rstrip("\r\n")
        if text.strip():
            start = start if held else number
            held.append(text)
            if paragraphs:
                continue
        if held:
            yield Row(file.name, start, {"text": "\n".join(held)}, reading=reading)
            held = []
    if held:
        yield Row(file.name, start, {"text": "\n".join(held)}, reading=reading)


def _has_paragraphs(file: DataFile) -> bool:
    """Whether a blank line stands between two that are not."""
    blank = begun = False
    for line in lines(file):
        if not line.strip():
            blank = begun
        elif blank:
            return True
        else:
            begun = True
    return False


def _holds_json(file: DataFile) -> bool:
    """Whether a file that is no JSON by its name begins with a JSON object or list."""
    for line in lines(file):
        if text := line.strip():
            if text in ("{", "[", "[{"):
                return True
            try:
                return isinstance(json.loads(text.removesuffix(",")), dict | list)
            except (ValueError, RecursionError):
                return False
    return False


def _holds_table(file: DataFile) -> bool:
    """Whether a file of text begins with the header of a table, as Excel saves it: known columns."""
    first = next((line.strip() for line in lines(file) if line.strip()), "")
    headers = ([name.strip().strip('"') for name in first.split(d)] for d in DELIMITERS)
    return any(len(names) > 1 and is_row(dict.fromkeys({*names} - {"text"})) for names in headers)


def _by_content(file: DataFile) -> Iterator[Row]:
    """The rows of a file of text, which may hold JSON under another name."""
    if file.format in ("json", "jsonl"):
        yield from json_rows(file)
    elif _holds_json(file):
        for row in json_rows(file):
            reading = f"holds JSON, whatever its name says{' and ' if row.reading else ''}"
            yield replace(row, reading=reading + row.reading)
    elif file.format == "txt" and not _holds_table(file):
        yield from _text_rows(file)
    elif file.format == "txt":
        for row in table_rows(file):
            reading = f"holds a table, whatever its name says{' and ' if row.reading else ''}"
            yield replace(row, reading=reading + row.reading)
    else:
        yield from table_rows(file)


def _hub_rows(source: str) -> Iterator[Row]:
    name, *more = source.split(":")
    if len(more) > 2:
        raise DataError(f"{source}: a hub id is written id, id:split or id:config:split")
    need("data", f"{source}: a dataset of the Hugging Face hub", "datasets")
    import datasets

    config, split = (more[0] if len(more) == 2 else None), (more[-1] if more else "train")
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        # datasets and the hub client raise many kinds (network, no such id, split or config); their
        # first line says which.
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(
            f"{source}: neither a file or folder here, nor can it be loaded as the Hugging Face "
            f"dataset {name!r} (split {split!r}): {reason}"
        ) from None
    form = form_of(rows)
    for number, fields in enumerate(rows, 1):
        yield Row(source, number, fields, form=form)
