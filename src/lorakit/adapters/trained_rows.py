"""trained_rows.safetensors: which rows an adapter was trained on, as short hashes.

    hashes           int32 (N,): the bits of each row's `lorakit.data.row_hash`, sorted as unsigned numbers
    rows             how many they are; with none in `hashes`, more than `MOST`
    adapter_sha256   of adapter_model.safetensors: 32 bytes

A run that goes on from the adapter tells by it which of its rows are new. peft, vLLM and other
readers ignore the file; the store keeps it, and the hub gets it where the repository is private:
whoever has a row can ask whether the adapter was trained on it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.errors import AdapterError
from lorakit.files.tensors import read_tensors, write_tensors

TRAINED_ROWS = "trained_rows.safetensors"
MOST = 1 << 20
"""Rows that the file holds at most, four bytes each."""


@dataclass(frozen=True)
class TrainedRows:
    """The rows that an adapter was trained on, by itself or by those that it went on from.

    Attributes:
        hashes: uint32 (N,), sorted, each once; empty where there are more than `MOST`.
        rows: N, or how many there were when they became more.
    """

    hashes: NDArray[np.uint32]
    rows: int

    @classmethod
    def of(cls, hashes: NDArray[np.uint32]) -> "TrainedRows":
        """From hashes in any order, some of them more than once."""
        unique = np.unique(hashes)
        return cls(unique if len(unique) <= MOST else unique[:0], len(unique))

    @property
    def are_known(self) -> bool:
        """Whether it can be told of a row that it is one of them."""
        return len(self.hashes) == self.rows

    def __or__(self, other: "TrainedRows") -> "TrainedRows":
        """The rows of both."""
        for one in (self, other):
            if not one.are_known:
                return one
        return TrainedRows.of(np.concatenate([self.hashes, other.hashes]))

    def new(self, hashes_S: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of S rows are none of them, bool (S,); only where they are known."""
        return ~np.isin(hashes_S, self.hashes)


def write_trained_rows(folder: Path, rows: TrainedRows | None, adapter_sha256: str) -> None:
    """Write the file beside an adapter's tensors, whose hash it names; none where nothing is known."""
    if rows is None or not rows.rows:
        return
    tensors = {
        "hashes": torch.from_numpy(rows.hashes.view(np.int32).copy()),
        "rows": torch.tensor(rows.rows),
        "adapter_sha256": torch.tensor(list(bytes.fromhex(adapter_sha256)), dtype=torch.uint8),
    }
    write_tensors(folder / TRAINED_ROWS, tensors)


def read_trained_rows(folder: Path, adapter_sha256: str | None) -> tuple[TrainedRows | None, str]:
    """The rows that an adapter records; None where it records none.

    Args:
        folder: of the adapter.
        adapter_sha256: of the folder's adapter_model.safetensors.

    Returns:
        The rows, and why there are none: '' where the folder has no such file.
    """
    path = folder / TRAINED_ROWS
    if not path.is_file():
        return None, ""
    try:
        tensors = read_tensors(path)
        written_for = bytes(tensors["adapter_sha256"].tolist()).hex()
        hashes, rows = tensors["hashes"].numpy().view(np.uint32), int(tensors["rows"])
    except AdapterError as error:
        return None, str(error)
    except (KeyError, ValueError, RuntimeError, TypeError):
        return None, f"{path} is no record of rows"
    if written_for != adapter_sha256:
        return None, f"{path} was written for other tensors than {folder} holds"
    if hashes.ndim != 1 or (len(hashes) != rows and (len(hashes) or rows <= MOST)):
        return None, f"{path} is no record of rows"
    return TrainedRows(np.unique(hashes), rows), ""
