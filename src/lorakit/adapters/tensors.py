"""Named tensors in a safetensors file: written whole or not at all, read with a clear error."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.errors import AdapterError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU copies of the tensors, flushed to the disk before it returns.

    Raises:
        OSError: the file cannot be written.
    """
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        raise AdapterError(f"{path} is truncated or no safetensors file: {error}") from error
