"""The header of a safetensors file: which tensors it holds, and where their bytes lie.

The format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes at offsets
from the header's end (https://huggingface.co/docs/safetensors).
"""

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A header is a few hundred bytes a tensor; safetensors itself refuses more than this.
_LIMIT = 100_000_000
_LENGTH = "<Q"


class DamagedTensorsError(ValueError):
    """A file is truncated, or no safetensors; the text says what is wrong with it."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in a safetensors file: `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its file, its name in there, and its header entry."""

    file: Path
    name: str
    entry: TensorEntry


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name; the file is as long as its header says.

    Raises:
        DamagedTensorsError: the file is truncated or no safetensors.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _length(file.read(8), size)
        return _entries(file.read(length), length, size)


def parse_header(content: bytes | bytearray) -> dict[str, TensorEntry]:
    """The same for the content of a file.

    Raises:
        DamagedTensorsError: as `read_header`.
    """
    length = _length(content[:8], len(content))
    return _entries(content[8 : 8 + length], length, len(content))


def format_header(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The bytes that stand before the tensors: of each its name, dtype code, shape and bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack(_LENGTH, len(text)) + text


def _length(head: bytes | bytearray, size: int) -> int:
    if len(head) < 8:
        raise DamagedTensorsError("it has no header")
    (length,) = struct.unpack(_LENGTH, head)
    if length > min(_LIMIT, size - 8):
        raise DamagedTensorsError("its header is longer than the file")
    return int(length)


def _entries(text: bytes | bytearray, length: int, size: int) -> dict[str, TensorEntry]:
    try:
        header = json.loads(text)
        entries = {
            name: TensorEntry(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedTensorsError("its header cannot be read") from error
    end = max((entry.end for entry in entries.values()), default=8 + length)
    if end != size:
        raise DamagedTensorsError(f"its header speaks of {end} bytes")
    return entries
