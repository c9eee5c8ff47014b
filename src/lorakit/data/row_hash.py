"""A short hash of a row's content, by which an adapter knows the rows that it was trained on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lorakit.data.example import Example


def row_hash(example: Example) -> int:
    """32 bits of a row's content, in which any run of white space counts as one space.

    Where the row stands, its file, and how a template writes it are no part of it. Two rows of
    other content have the same hash once in four billion.

    >>> rows = [Example("a.csv:2", "say  lamp\\n", "pmal"), Example("b.csv:9", "say lamp", " pmal")]
    >>> row_hash(rows[0]) == row_hash(rows[1])
    True
    >>> row_hash(rows[0]) == row_hash(Example("a.csv:2", "say lamp", "lamp"))
    False
    """
    parts = [
        *(example.prompt, example.completion),
        *(example.messages, example.tools, example.text),
    ]
    text = json.dumps(_spaced(parts), ensure_ascii=False, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def _spaced(value: Any) -> Any:
    """The value with one space for each run of white space in its texts, and none at their ends."""
    match value:
        case str():
            return " ".join(value.split())
        case Mapping():
            return {key: _spaced(item) for key, item in value.items()}
        case list() | tuple():
            return [_spaced(item) for item in value]
    return value
