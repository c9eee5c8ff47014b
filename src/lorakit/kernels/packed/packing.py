"""What a packing of a weight must do: give back rows of the matrix that it stands for.

A packing is a value. It holds the tensors that it is made of and never changes them; the same packing
over the same tensors on another device is a new value. Whoever reads a new kind of file writes a class
with these members and nothing else changes: `PackedWeight` multiplies by it, `PackedLinear` holds it.

Legend: I in_features, O out_features, R rows taken at once.
"""

from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import Tensor


class Packing(Protocol):
    """A matrix W of shape (out_features, in_features), kept in fewer bits than a float's."""

    @property
    def name(self) -> str:
        """What people call it: "nf4", "int8", "q4_1"."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of the matrix that it stands for."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What it is made of, by names that may be those of buffers: no dots, not weight or bias.

        What every layer shares and no file holds, such as a table of levels, is none of them.
        """

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same packing over other tensors of these names, shapes and dtypes: moved ones."""

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`, in its dtype: float64, float32, bfloat16, float16.

        `rows` is contiguous, on the device of the tensors. Any range of rows must be right;
        `PackedWeight` asks for starts at multiples of 64 alone.
        """


def nbytes(packing: Packing) -> int:
    """Bytes that the tensors of a packing take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in packing.tensors.values())


def rows(packing: Packing, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """W[start:stop] as a new tensor: (stop - start, I)."""
    device = next(iter(packing.tensors.values())).device
    rows_RI = torch.empty(stop - start, packing.shape[1], dtype=dtype, device=device)
    packing.fill(rows_RI, start)
    return rows_RI


def whole(packing: Packing, dtype: torch.dtype) -> Tensor:
    """W as a new tensor: (O, I)."""
    return rows(packing, 0, packing.shape[0], dtype)
