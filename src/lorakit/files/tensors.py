"""Named tensors in a safetensors file: written whole or not at all, read with a clear error."""

import contextlib
import errno
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from lorakit.errors import AdapterError
from lorakit.files.header import DamagedTensorsError, parse_header, read_header
from lorakit.files.pointers import pointer_problem
from lorakit.files.whole import sync


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU copies of the tensors, flushed to the disk before it returns.

    Raises:
        OSError: the file cannot be written, a full disk among the reasons.
    """
    copies = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    with system_errors():
        save_file(copies, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors renames a file of its own into place, readable by the owner only
    sync(path)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Within the block what safetensors cannot write is an OSError.

    It writes in Rust and puts the system's error number into its text.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(errno.EIO, str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        AdapterError: the file is missing, truncated or no safetensors.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise not_safetensors(path, error) from error


def read_tensors_at_once(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, which is read whole and then let go of: it may change afterwards.

    A mapped file that is cut short while it is read ends the process. The tensors are views of what
    was read: safetensors' own reader copies each of them, a third of the time that reading takes.

    Raises:
        AdapterError: the file cannot be read, is truncated or no safetensors.
    """
    try:
        with path.open("rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            del content[file.readinto(content) :]  # cut short meanwhile
        views = _views(content)
        return load(bytes(content)) if views is None else views
    except (SafetensorError, OSError) as error:
        raise not_safetensors(path, error) from error


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point formats by their codes in a header."""
CODES = {dtype: code for code, dtype in DTYPES.items()} | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The code of a format in a header."""


def _views(content: bytearray) -> dict[str, Tensor] | None:
    """Tensors of a safetensors file without a copy; None where anything about it is not plain."""
    try:
        tensors = {}
        for name, entry in parse_header(content).items():
            dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
            if count * dtype.itemsize != entry.end - entry.start or min(entry.start, count - 1) < 0:
                return None
            view = torch.frombuffer(content, dtype=dtype, count=count, offset=entry.start)
            tensors[name] = view.view(entry.shape)
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None  # safetensors' own reader says what is wrong
    return tensors


def read_tensors_and_hash(path: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a file and the SHA-256 of the very bytes they came from.

    Raises:
        AdapterError: the file cannot be read, is truncated or no safetensors.
    """
    try:
        content = path.read_bytes()
        return load(content), hashlib.sha256(content).hexdigest()
    except (SafetensorError, OSError) as error:
        raise not_safetensors(path, error) from error


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors from its header alone.

    Raises:
        AdapterError: the file is truncated or no safetensors.
    """
    try:
        return {name: entry.shape for name, entry in read_header(path).items()}
    except (DamagedTensorsError, OSError) as error:
        raise not_safetensors(path, error) from error


def not_safetensors(path: Path, error: Exception) -> AdapterError:
    """The error for a file that cannot be read as safetensors, saying what it looks like."""
    if problem := pointer_problem(path):
        return AdapterError(f"{path} {problem}")
    if isinstance(error, OSError):
        return AdapterError(f"{path} cannot be read: {error.strerror}")
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02"):
        return AdapterError(
            f"{path} is a pickle (torch.save) under another name; reading one can run code: "
            "convert it with torch.load(…, weights_only=True) and safetensors.torch.save_file"
        )
    size = path.stat().st_size
    return AdapterError(f"{path} ({size:,} bytes) is truncated or no safetensors file: {error}")


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that every tensor holds ordinary numbers.

    Raises:
        AdapterError: a tensor of integers, or one with a NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise AdapterError(f"{path}: {name} is {tensor.dtype}, not a floating-point tensor")
    # One pass over each tensor and one answer for all: a sum is finite only where its terms are. One
    # that is not may have overflowed, so that then every number is looked at.
    sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors.values()]
    if not sums or bool(torch.stack([total.double() for total in sums]).isfinite().all()):
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} holds a NaN or an infinity; train it again")
