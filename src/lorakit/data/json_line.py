"""A row as one line of JSON: numbers with the digits they were written with, letters as themselves."""

import math
from collections.abc import Mapping
from typing import Any

from lorakit.data.mapping import write_value
from lorakit.errors import DataError


def json_line(fields: Mapping[str, Any], where: str) -> str:
    """The columns of a row as a JSON object on one line, without a line end.

    Dates and times are written in ISO 8601, as texts.

    >>> json_line({"n": 1, "name": "Ö", "gone": None}, "rows.jsonl:1")
    '{"n": 1, "name": "Ö", "gone": null}'

    Args:
        fields: the columns.
        where: the row, for messages.

    Raises:
        DataError: a value that JSON cannot hold: bytes, NaN, an infinity.
    """
    for name, value in fields.items():
        if isinstance(value, float | list | tuple | Mapping) and not _finite(value):
            raise DataError(
                f"{where}: {name!r} holds NaN or an infinity, which JSON has not: write to a .parquet "
                "file"
            )
        if isinstance(value, bytes | bytearray):
            raise DataError(
                f"{where}: {name!r} holds bytes, which text cannot hold: write to a .parquet file"
            )
    return write_value(dict(fields), where)


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
