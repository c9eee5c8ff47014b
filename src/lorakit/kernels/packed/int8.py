"""int8: each row of the weight in steps of a 127th of its largest element.

    W[o, i] = q[o, i] · scale[o],  scale[o] = max_i |W[o, i]| / 127

It is the weight of LLM.int8 (Dettmers et al., arXiv 2208.07339) without outliers, and what
bitsandbytes keeps as `CB` and `SCB`. Activations are not rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import PackedLayout
from lorakit.kernels.packed.lookup import in_pieces

_FEW_ROWS = 4


@dataclass(frozen=True, eq=False)
class Int8:
    """A weight in 8 bits with a scale for each row.

    Attributes:
        quants: (O, I), int8.
        scales: (O,), float32.
    """

    quants: Tensor
    scales: Tensor

    name = "int8"

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Quantize a weight."""
        wide = weight_OI.to(torch.float32)
        scales = wide.abs().amax(1) / 127
        quants = (wide / scales.clamp_min(1e-30)[:, None]).round_().to(torch.int8)
        return cls(quants, scales)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        out, width = self.quants.shape
        return out, width

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return {"quants": self.quants, "scales": self.scales}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        return type(self)(**tensors)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        width = self.shape[1]

        def write(place: int, piece: Tensor) -> None:
            first = start + place // width
            part = slice(first, first + len(piece) // width)
            piece.view(-1, width).copy_(self.quants[part]).mul_(self.scales[part, None])

        in_pieces(rows_RI.view(-1), width, write)

    def layout(self) -> PackedLayout:
        """As the compiled kernels read it."""
        return PackedLayout("int8", self.shape, self.quants, self.scales)

    def product(self, x_TI: Tensor) -> Tensor | None:
        """X Wᵀ for few rows in 16 bits on a CPU, where torch has a product that reads int8."""
        few = x_TI.shape[0] <= _FEW_ROWS and x_TI.device.type == "cpu"
        if not few or x_TI.dtype != torch.bfloat16:
            return None
        scales = self.scales.to(x_TI.dtype)
        return torch._weight_int8pack_mm(x_TI.contiguous(), self.quants, scales)
