"""fp8: each row of the weight in float8_e4m3fn times a scale that brings its largest element to 448.

    W[o, i] = e4m3[o, i] · scale[o],  scale[o] = max_i |W[o, i]| / 448

A sign, 4 bits of exponent and 3 of fraction (Micikevicius et al., arXiv 2209.05433).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import PackedLayout
from lorakit.kernels.packed.lookup import in_pieces, look_up, pairs_of_bytes

_LARGEST = 448.0


@dataclass(frozen=True, eq=False)
class Fp8:
    """A weight in 8-bit floats with a scale for each row.

    Attributes:
        shape: (out_features, in_features).
        codes: (O, I) bytes of float8_e4m3fn, flat and filled up to an even number, uint8.
        scales: (O,), float32.
    """

    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor

    name = "fp8"

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Quantize a weight."""
        wide = weight_OI.detach().to(torch.float32)
        scales = wide.abs().amax(1) / _LARGEST
        narrow = wide / torch.where(scales > 0, scales, 1.0)[:, None]
        codes = narrow.to(torch.float8_e4m3fn).view(torch.uint8).flatten()
        out, width = wide.shape
        return cls((out, width), torch.nn.functional.pad(codes, (0, len(codes) % 2)), scales)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return {"codes": self.codes, "scales": self.scales}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        return type(self)(self.shape, **tensors)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        width = self.shape[1]
        if width % 2:
            codes = self.codes[start * width : (start + len(rows_RI)) * width]
            wide = codes.view(torch.float8_e4m3fn).float().view(rows_RI.shape)
            rows_RI.copy_(wide * self.scales[start : start + len(rows_RI), None])
            return
        table = pairs_of_bytes(torch.float8_e4m3fn, self.codes.device)

        def write(place: int, piece: Tensor) -> None:
            first = start * width + place
            look_up(self.codes[first : first + len(piece)].view(torch.uint16), table, piece)
            rows = slice(first // width, (first + len(piece)) // width)
            piece.view(-1, width).mul_(self.scales[rows, None])

        in_pieces(rows_RI.view(-1), width, write)

    def layout(self) -> PackedLayout:
        """As the compiled kernels read it."""
        return PackedLayout("e4m3", self.shape, self.codes, self.scales)
