"""Weights of one byte a number, times a scale: int8 and float8 of several libraries.

    w = scale · (q - zero)

with a scale for the whole matrix, for each row, or for each block of rows and columns:

    bitsandbytes int8     a scale for each row, SCB / 127
    compressed-tensors    int8 or float8, a scale for the matrix, for each row, each group or each block
    fine-grained FP8      float8 with a scale for each block of 128 by 128

Legend: O out_features, I in_features, R rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import PackedLayout
from lorakit.kernels.packed.lookup import look_up, pairs_of_bytes


@dataclass(frozen=True, eq=False)
class ScaledBytes:
    """W as bytes with scales.

    Attributes:
        values: (O, I) of int8 or a float8.
        scales: (ceil(O / block[0]), ceil(I / block[1])).
        zeros: of the same shape; None where every zero is 0.
        block: rows and columns that share a scale; the last may have fewer.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    block: tuple[int, int]

    def checked(self) -> Self:
        """Itself, once its tensors are seen to fit one another.

        Raises:
            ValueError: they do not.
        """
        (out, inputs), (down, right) = self.values.shape, self.block
        due = (-(-out // down), -(-inputs // right))
        zeros = self.scales if self.zeros is None else self.zeros
        if tuple(self.scales.shape) != due or zeros.shape != self.scales.shape:
            raise ValueError(f"scales of {tuple(self.scales.shape)} where {due} are due")
        if self.values.element_size() != 1:
            raise ValueError(f"{self.values.dtype} is not one byte a number")
        return self

    @property
    def name(self) -> str:
        """By format."""
        return "int8" if self.values.dtype == torch.int8 else "fp8"

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        kept = {"values": self.values, "scales": self.scales}
        return kept if self.zeros is None else {**kept, "zeros": self.zeros}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        zeros = tensors.get("zeros")
        return type(self)(tensors["values"], tensors["scales"], zeros, self.block)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        values = _numbers(self.values[start:stop])
        if self.zeros is not None:
            values -= self._spread(self.zeros, start, stop)
        rows_RI.copy_(values.mul_(self._spread(self.scales, start, stop)))

    def layout(self) -> PackedLayout | None:
        """As the compiled kernels read it, where each row has one scale."""
        kind = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3"}.get(self.values.dtype)
        rows = self.block[0] == 1 and self.block[1] >= self.shape[1] and self.zeros is None
        return PackedLayout(kind, self.shape, self.values, self.scales) if rows and kind else None

    def _spread(self, grid: Tensor, start: int, stop: int) -> Tensor:
        """A grid's values over rows start..stop, and over the columns where there is more than one."""
        down, right = self.block
        lines = torch.arange(start, stop, device=grid.device) // down
        part = grid.float()[lines]
        if part.shape[1] == 1:
            return part
        return part.repeat_interleave(right, 1)[:, : self.values.shape[1]]


def _numbers(values: Tensor) -> Tensor:
    """Bytes as float32. float8 by a table: torch's cast of it is slow on a CPU."""
    if values.dtype == torch.int8:
        return values.float()
    pairs = values.contiguous().view(torch.uint8).flatten()
    if values.shape[1] % 2 == 0:
        numbers = torch.empty(values.shape, device=values.device)
        codes = pairs.view(torch.uint16)
        look_up(codes, pairs_of_bytes(values.dtype, values.device), numbers.view(-1))
        return numbers
    table = torch.arange(256, dtype=torch.uint8).view(values.dtype).float().to(values.device)
    return table.index_select(0, pairs.int()).view(values.shape)
