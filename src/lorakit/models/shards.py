"""Tensors of model folders in blocks: read by rows, written one after the other.

Neither side ever holds more than one block of rows, whatever the size of a file or a tensor.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.models.weights import WeightEntry

BLOCK = 1 << 19  # elements in a block of rows: 4 MB in float64
_CHUNK = 1 << 22
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one rows of blocks of about `BLOCK` elements that cover a tensor."""
    width = 1
    for size in shape[1:]:
        width *= size
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def read_rows(place: WeightEntry, start: int, stop: int) -> Tensor:
    """Rows of a tensor, read from the file and no others.

    The file is opened for each call: what is mapped of it goes away again, so that pages read
    once do not stay in this process.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(place.file, framework="pt") as file:
            rows: Tensor = file.get_slice(place.name)[start:stop]
            return rows.clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{place.file}: {place.name} cannot be read: {error}") from error


def read_whole(place: WeightEntry) -> Tensor:
    """A whole tensor, one of no dimension among them.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(place.file, framework="pt") as file:
            value: Tensor = file.get_tensor(place.name)
            return value.clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{place.file}: {place.name} cannot be read: {error}") from error


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written.

    Attributes:
        name: in the new file.
        dtype: safetensors' code, such as "BF16".
        shape: of the tensor.
        parts: its bytes in order, computed when they are written.
        size: their number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[bytes | memoryview]
    size: int


def write_stream(path: Path, tensors: Sequence[Planned]) -> None:
    """Write a safetensors file of tensors that are computed one after the other.

    safetensors' own writers want all tensors of a file in memory; the format is a length, a JSON
    header, and the bytes (https://huggingface.co/docs/safetensors).

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            before = file.tell()
            for part in tensor.parts:
                file.write(part)
            if file.tell() - before != tensor.size:
                raise OSError(f"{tensor.name} has {file.tell() - before} bytes, not {tensor.size}")
        file.flush()
        os.fsync(file.fileno())


def raw(place: WeightEntry) -> Iterator[bytes]:
    """A tensor's bytes as they lie in its file."""
    with place.file.open("rb") as file:
        file.seek(place.entry.start)
        left = place.entry.end - place.entry.start
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise ModelError(f"{place.file} became shorter while it was read")
            left -= len(chunk)
            yield chunk


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
