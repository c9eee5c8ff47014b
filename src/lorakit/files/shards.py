"""Tensors of model folders in pieces: read lazily by rows, written one after the other.

Neither side ever holds more than one block of rows, whatever the size of a file or a tensor.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.files.header import StoredTensor, format_header
from lorakit.files.whole import sync

BLOCK = 1 << 19  # numbers in a block of rows: 4 MB in float64, and a check holds some ten of them
_CHUNK = 1 << 22


def blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last-plus-one rows of blocks of about `BLOCK` numbers that cover a tensor."""
    width = 1
    for size in shape[1:]:
        width *= size
    step = max(BLOCK // max(width, 1), 1)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def read_rows(stored: StoredTensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor, read from the file and no others.

    The file is opened for each call: what is mapped of it goes away again, so that pages read
    once do not stay in this process.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(stored.file, framework="pt") as file:
            rows: Tensor = file.get_slice(stored.name)[start:stop]
            return rows.clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{stored.file}: {stored.name} cannot be read: {error}") from error


def read_whole(stored: StoredTensor) -> Tensor:
    """A whole tensor, one of no dimension among them.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with safe_open(stored.file, framework="pt") as file:
            value: Tensor = file.get_tensor(stored.name)
            return value.clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{stored.file}: {stored.name} cannot be read: {error}") from error


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written.

    Attributes:
        name: in the new file.
        dtype: safetensors' code, such as "BF16".
        shape: of the tensor.
        parts: its bytes in order, made when they are written.
        size: their number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[bytes | memoryview]
    size: int


def write_stream(path: Path, tensors: Sequence[Planned]) -> None:
    """Write a safetensors file of tensors that are made one after the other.

    safetensors' own writers want all tensors of a file in memory; the format is a length, a JSON
    header, and the bytes; see header.py.

    Raises:
        OSError: the file cannot be written.
    """
    header = format_header([(t.name, t.dtype, t.shape, t.size) for t in tensors])
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors:
            before = file.tell()
            for part in tensor.parts:
                file.write(part)
            if file.tell() - before != tensor.size:
                raise OSError(f"{tensor.name} came out at {file.tell() - before} bytes")
    sync(path)


def raw(stored: StoredTensor) -> Iterator[bytes]:
    """A tensor's bytes as they lie in its file."""
    with stored.file.open("rb") as file:
        file.seek(stored.entry.start)
        left = stored.entry.end - stored.entry.start
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise ModelError(f"{stored.file} became shorter while it was read")
            left -= len(chunk)
            yield chunk


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
