"""Files and hub ids -> rows that know their file and line, with every value as it was written.

Only Hugging Face ids go through `datasets`. For files it would change the rows: its CSV reader
turns "001" into 1 and "NA" into None, its JSON reader turns "2024-01-01" into a datetime and adds a
null for every key that another row has, and neither knows line numbers. The standard library's
json and csv read them line by line instead, and pyarrow reads Parquet batch by batch without a copy
in a cache.
"""

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, NoReturn

from lorakit.data.files import (
    DAMAGED,
    DataFile,
    decompression_error,
    files_of,
    lines,
    need_for,
    open_bytes,
)
from lorakit.data.given import GivenRows, Source, origin
from lorakit.errors import DataError
from lorakit.extras import need


@dataclass(frozen=True)
class Row:
    """One row: its columns, file and line. Lines count from 1 (for Parquet and ids: rows)."""

    file: str
    line: int
    fields: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """ "file:line", or "row 17 of the rows you gave"."""
        return origin(self.file, self.line)


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
                yield Row(source.name, number, columns)
            continue
        files = files_of(source)
        if files is None:
            yield from _hub_rows(source)
            continue
        for file in files:
            empty = True
            for row in _READERS[file.format](file):
                empty = False
                yield row
            if empty:
                raise DataError(f"{file.name}: the file holds no rows")


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or leave the key out")


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=WrittenFloat, parse_constant=_constant
)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno}"
    return f"broken JSON: {error or type(error).__name__}"


def _row(file: DataFile, line: int, value: Any, text: str) -> Row:
    where = f"{file.name}:{line}"
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: a row must be a JSON object such as {{"prompt": …, "completion": …}}; this '
            f"is {text.strip()[:40]!r}"
        )
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: broken JSON: half of a surrogate pair (\\ud800 to \\udfff alone)"
            ) from None
    return Row(file.name, line, value)


def _jsonl_rows(file: DataFile) -> Iterator[Row]:
    for number, text in enumerate(lines(file), 1):
        if not text.strip():
            continue
        try:
            value = _JSON.decode(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.name}:{number}: {_why(error)}") from None
        yield _row(file, number, value, text)


def _json_rows(file: DataFile) -> Iterator[Row]:
    text = "".join(lines(file))
    at = _skip(text, 0)
    if not text.startswith("[", at):
        # Many a .json holds one object a line.
        yield from _jsonl_rows(file)
        return
    line, counted = 1, 0
    at = _skip(text, at + 1)
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = _JSON.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{file.name}:{error.lineno}: {_why(error)}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.name}:{line}: {_why(error)}") from None
        yield _row(file, line, value, text[at:end])
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
            if not text.startswith("]", at):
                continue
        elif text.startswith("]", at):
            continue
        line = 1 + text.count("\n", 0, at)
        raise DataError(f"{file.name}:{line}: broken JSON: expected ',' or ']' after a row")
    if rest := text[at + 1 :].strip():
        line = 1 + text.count("\n", 0, at)
        raise DataError(f"{file.name}:{line}: broken JSON: {rest[:20]!r} after the closing ']'")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _table_rows(file: DataFile, delimiter: str) -> Iterator[Row]:
    # The csv module refuses fields above 128 KiB by default, and has no setting for one reader alone.
    csv.field_size_limit(2**31 - 1)
    # strict: otherwise a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{file.name}:{start}: broken {file.format.upper()}: {error} (a quote inside a "
                'quoted field is written twice: "")'
            ) from None
        if not values:
            continue
        if header is None:
            header = _header(file, start, values)
        elif len(values) != len(header):
            raise DataError(
                f"{file.name}:{start}: {len(values)} fields where the header has {len(header)} "
                f"({', '.join(map(repr, header[:8]))}); quote a field that holds {delimiter!r}"
            )
        else:
            yield Row(file.name, start, dict(zip(header, values, strict=True)))


def _header(file: DataFile, line: int, names: list[str]) -> list[str]:
    for i, name in enumerate(names):
        if not name.strip():
            raise DataError(f"{file.name}:{line}: column {i + 1} of the header has no name")
        if name in names[:i]:
            raise DataError(f"{file.name}:{line}: the header names the column {name!r} twice")
    return names


def _parquet_rows(file: DataFile) -> Iterator[Row]:
    need_for(file)
    import pyarrow
    import pyarrow.parquet

    try:
        with _seekable(file) as stream:
            batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024)
            rows = (fields for batch in batches for fields in batch.to_pylist())
            for number, fields in enumerate(rows, 1):
                yield Row(file.name, number, fields)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{file.name}: broken Parquet: {reason}") from None


def _seekable(file: DataFile) -> BinaryIO:
    # Parquet keeps its table of contents at the end, so a compressed one is unpacked to a temporary
    # file first.
    stream = open_bytes(file)
    if not file.compression:
        return stream
    out = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    with stream:
        try:
            while chunk := stream.read(1 << 20):
                out.write(chunk)
        except DAMAGED as error:
            out.close()
            raise decompression_error(file, error, 0) from None
    out.seek(0)
    return out


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
    for number, fields in enumerate(rows, 1):
        yield Row(source, number, fields)


_READERS = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": lambda file: _table_rows(file, ","),
    "tsv": lambda file: _table_rows(file, "\t"),
    "parquet": _parquet_rows,
}
