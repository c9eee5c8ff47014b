"""Rows and their answers -> a Parquet file.

Of Parquet and Arrow files with one schema every column stays as it is. Other rows get the narrowest
schema that holds them all, which is found while they are surveyed, a thousand rows at a time.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.data import Row
from lorakit.data.arrow import arrow_batches
from lorakit.data.files import files_of
from lorakit.data.given import GivenRows, Source
from lorakit.errors import DataError
from lorakit.extras import need
from lorakit.serving.answering.row_answer import RowAnswer
from lorakit.serving.answering.spec import AnswerSpec
from lorakit.serving.answering.writing import added

_SURVEYED, _GROUP = 1000, 8192


class ParquetTable:
    """Writes Parquet.

    Args:
        spec: what is added.
        sources: where the rows are; read again, as they lie, where they are Parquet or Arrow.
        limit: only the first N rows.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, spec: AnswerSpec, sources: Sequence[Source], limit: int | None) -> None:
        need("data", f"{spec.out}: writing Parquet", "pyarrow")
        self._spec, self._sources, self._limit = spec, sources, limit
        self._schema: Any = None
        self._held: list[Row] = []
        self._own = _common_schema(sources)

    def check(self, row: Row) -> None:
        """Take a row's types into the schema.

        Raises:
            DataError: a column holds values of types that no column of Parquet holds together.
        """
        if self._own is None:
            self._held.append(row)
            if len(self._held) >= _SURVEYED:
                self.settle()

    def settle(self) -> None:
        """Take the types of the rows that are held."""
        import pyarrow

        rows, self._held = self._held, []
        if not rows:
            return
        names = dict.fromkeys(name for row in rows for name in row.fields)
        fields = [pyarrow.field(name, _type_of(rows, name)) for name in names]
        schema = pyarrow.schema(fields)
        if self._schema is not None:
            try:
                schema = pyarrow.unify_schemas([self._schema, schema], promote_options="permissive")
            except pyarrow.ArrowException as error:
                raise _mixed(rows[0].origin, str(error).split("\n")[0]) from None
        self._schema = schema

    def write(self, path: Path, rows: Iterator[tuple[Row, RowAnswer]]) -> None:
        """Write the file.

        Raises:
            DataError: the rows are not those that were surveyed.
        """
        import pyarrow.parquet

        writer = None
        try:
            for table in self._tables(rows):
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(path, table.schema)
                writer.write_table(table, row_group_size=_GROUP)
        finally:
            if writer is not None:
                writer.close()

    def _tables(self, rows: Iterator[tuple[Row, RowAnswer]]) -> Iterator[Any]:
        import pyarrow

        if self._own is not None:
            held: list[Any] = []
            for batch in self._batches():
                held.append(pyarrow.Table.from_batches([batch], self._own))
                if sum(len(table) for table in held) >= _GROUP:
                    yield self._with_answers(pyarrow.concat_tables(held), rows)
                    held = []
            if held:
                yield self._with_answers(pyarrow.concat_tables(held), rows)
            for row, _ in rows:  # what checks the rows runs after the last of them
                raise DataError(f"{row.origin}: the rows changed while they were being answered")
            return
        types = [f.type if str(f.type) != "null" else pyarrow.string() for f in self._schema]
        schema = pyarrow.schema(
            [pyarrow.field(f.name, kind) for f, kind in zip(self._schema, types, strict=True)]
        )
        while part := list(islice(rows, _GROUP)):
            arrays = [
                pyarrow.array([_plain(row.fields.get(f.name)) for row, _ in part], f.type)
                for f in schema
            ]
            table = pyarrow.Table.from_arrays(arrays, schema=schema)
            yield self._with_answers(table, iter(part))

    def _with_answers(self, table: Any, rows: Iterator[tuple[Row, RowAnswer]]) -> Any:
        import pyarrow

        answers = [added(self._spec, answer) for _, answer in islice(rows, len(table))]
        name = self._spec.answer_column
        kinds = {
            name: pyarrow.string(),
            f"{name}_probability": pyarrow.float64(),
            f"{name}_probabilities": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
            f"{name}_error": pyarrow.string(),
        }
        for column in self._spec.columns:
            values = [answer[column] for answer in answers]
            if column == f"{name}_probabilities":
                values = [v if v is None else list(v.items()) for v in values]
            table = table.append_column(column, pyarrow.array(values, kinds[column]))
        return table

    def _batches(self) -> Iterator[Any]:
        left = self._limit
        for source in self._sources:
            for file in files_of(str(source)) or ():
                for batch in arrow_batches(file):
                    if left is not None and left <= 0:
                        return
                    taken = batch if left is None else batch.slice(0, left)
                    left = None if left is None else left - len(taken)
                    yield taken


def _common_schema(sources: Sequence[Source]) -> Any:
    """The schema of all files, None where they have none in common or are of other formats."""
    found = None
    for source in sources:
        files = None if isinstance(source, GivenRows) else files_of(source)
        if not files:
            return None
        for file in files:
            if file.format not in ("parquet", "arrow"):
                return None
            schema = next(arrow_batches(file)).schema
            if found is not None and not schema.equals(found):
                return None
            found = schema if found is None else found
    return found


def _type_of(rows: Sequence[Row], name: str) -> Any:
    import pyarrow

    values = [_plain(row.fields.get(name)) for row in rows]
    try:
        return pyarrow.array(values).type
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:
        raise _mixed(rows[0].origin, f"{name!r}: {str(error).splitlines()[0]}") from None


def _plain(value: Any) -> Any:
    """Numbers without their text, which pyarrow does not know."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _mixed(origin: str, why: str) -> DataError:
    return DataError(
        f"{origin}: a column holds values of different types here or in rows after it ({why}), which "
        "Parquet cannot hold: give --out NAME.jsonl"
    )
