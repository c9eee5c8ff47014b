"""Parquet and Arrow files -> rows: maps and JSON columns as they were written, a row at a time.

What `datasets` from 5.0 on reads from JSON with objects of different keys, it keeps as JSON text of the
type `arrow.json`, also in the Parquet files that it writes; pyarrow gives the text. In any other column
an object has a null for each key that the object of another row has.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lorakit.data.files import DAMAGED, decompression_error, need_for, open_bytes
from lorakit.data.formats import DataFile
from lorakit.data.row import Row, WrittenObject
from lorakit.errors import DataError

Decoder = Callable[[Any], Any]


def arrow_rows(file: DataFile) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file, numbered from 1.

    Raises:
        DataError: the file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    rows = (fields for batch in arrow_batches(file) for fields in _as_python(file, batch))
    for number, fields in enumerate(rows, 1):
        yield Row(file.name, number, fields, form="arrow")


def arrow_batches(file: DataFile) -> Iterator[Any]:
    """The record batches of a Parquet or Arrow file, in its own schema.

    Raises:
        DataError: the file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    need_for(file)
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        with _seekable(file) as stream:
            if file.format == "parquet":
                batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024)
            else:
                batches = _ipc(stream)
            for batch in batches:
                # Without this, damaged offsets or text that is not UTF-8 end in pyarrow's own tracebacks.
                batch.validate(full=True)
                yield batch
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(file, error) from None


def _broken(file: DataFile, error: Exception) -> DataError:
    reason = str(error).split("\n")[0]
    return DataError(f"{file.name}: broken {file.format.capitalize()}: {reason}")


def _ipc(stream: BinaryIO) -> Iterator[Any]:
    # `datasets` saves the streaming form of Arrow's files, other programs the one with a footer.
    import pyarrow.ipc

    begins = stream.read(6)
    stream.seek(0)
    if begins == b"ARROW1":
        reader = pyarrow.ipc.open_file(stream)
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(pyarrow.ipc.open_stream(stream))


def _as_python(file: DataFile, batch: Any) -> list[dict[str, Any]]:
    """Rows of a batch; a map column becomes a dict, as it was in JSON."""
    import pyarrow

    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(file, error) from None
    if "map<" in str(batch.schema):
        rows = [_with_maps(row) for row in rows]
    decoders = {f.name: d for f in batch.schema if (d := _json_decoder(f))}
    for row in rows if decoders else ():
        row.update({name: decode(row[name]) for name, decode in decoders.items()})
    return rows


def _json_decoder(field: Any) -> Decoder | None:
    """What reads the JSON text in a column, None where it holds none."""
    import pyarrow

    kind = field.type
    # A pyarrow that does not know the type gives its storage, with the name beside it.
    if (field.metadata or {}).get(b"ARROW:extension:name") == b"arrow.json":
        return _from_json
    if "arrow.json" in str(kind) and isinstance(kind, pyarrow.BaseExtensionType):
        return _from_json
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        inner = _json_decoder(kind.value_field)
        return inner and (lambda value: value and [inner(item) for item in value])
    if pyarrow.types.is_struct(kind):
        inside = {
            f.name: d
            for f in (kind.field(i) for i in range(kind.num_fields))
            if (d := _json_decoder(f))
        }
        if inside:
            return lambda value: (
                value and {k: inside[k](v) if k in inside else v for k, v in value.items()}
            )
    return None


def _from_json(text: Any) -> Any:
    try:
        return json.loads(text, object_hook=WrittenObject) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return text


def _with_maps(value: Any) -> Any:
    # Arrow gives a map as a list of tuples, and nothing else as tuples.
    if isinstance(value, list):
        if value and all(isinstance(pair, tuple) for pair in value):
            return {key: _with_maps(item) for key, item in value}
        return [_with_maps(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_maps(item) for key, item in value.items()}
    return value


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
