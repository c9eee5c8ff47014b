"""4 bits: each block of a flattened weight is one scale times one of 16 levels for each element.

nf4     W = level[q] · absmax, blocks of 64; levels are quantiles of a normal distribution, so that
        each is as likely as any other (QLoRA, Dettmers et al., arXiv 2305.14314). The tensors are
        those of bitsandbytes, and with `double` its scales are packed as well, as QLoRA does it:
        absmax = map[c] · nested + offset, with 8 bits c and blocks of 256
int4    W = (q - 8) · scale, blocks of 32, and of the scales the sign that gives the largest
        element of a block the level -8, as llama.cpp's Q4_0 has it; scales in bfloat16
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.dynamic_map import DYNAMIC
from lorakit.kernels.packed.lookup import in_pieces, look_up, pairs_of_nibbles

# Of table 5 of the paper's appendix E, in the digits of bitsandbytes.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
INT4_LEVELS = tuple(float(q - 8) for q in range(16))
_BLOCKS = {"nf4": (64, NF4_LEVELS), "int4": (32, INT4_LEVELS)}
_NESTED = 256


@dataclass(frozen=True, eq=False)
class FourBits:
    """A weight of 16 levels.

    Attributes:
        name: "nf4" or "int4".
        shape: (out_features, in_features).
        codes: (half the elements of whole blocks,), uint8, two codes each, the first in the upper half.
        scales: one a block: float32 or bfloat16, or uint8 where they are packed too.
        nested: (⌈blocks / 256⌉ + 1,), float32: scales of the scales, and their offset last; or None.
    """

    name: str
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    nested: Tensor | None = None

    @classmethod
    def nf4(cls, weight_OI: Tensor, *, double: bool = True) -> Self:
        """Quantize a weight to NF4, its scales to 8 bits if `double`."""
        blocks = _in_blocks(weight_OI, 64)
        scales = blocks.abs().amax(1)
        levels = torch.tensor(NF4_LEVELS, device=blocks.device)
        between = (levels[1:] + levels[:-1]) / 2
        scaled = blocks / torch.where(scales > 0, scales, 1.0)[:, None]
        codes = torch.bucketize(scaled, between, out_int32=True).to(torch.uint8)
        packed = cls("nf4", _shape(weight_OI), _halves(codes), scales)
        return packed.doubled() if double else packed

    @classmethod
    def int4(cls, weight_OI: Tensor) -> Self:
        """Quantize a weight to 4-bit integers."""
        blocks = _in_blocks(weight_OI, 32)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scales = (largest / -8).to(torch.bfloat16)
        wide = scales.float()
        codes = (blocks / torch.where(wide == 0, 1.0, wide)).round_().add_(8).clamp_(0, 15)
        halves = _halves(codes.to(torch.uint8))
        return cls("int4", _shape(weight_OI), halves, scales[:, 0])

    def doubled(self) -> Self:
        """The same with scales in 8 bits."""
        offset = self.scales.mean()
        blocks = _in_blocks(self.scales - offset, _NESTED)
        nested = blocks.abs().amax(1)
        levels = torch.tensor(DYNAMIC, device=blocks.device)
        between = (levels[1:] + levels[:-1]) / 2
        scaled = blocks / torch.where(nested > 0, nested, 1.0)[:, None]
        codes = torch.bucketize(scaled, between, out_int32=True).to(torch.uint8)
        codes = codes.flatten()[: len(self.scales)].clone()
        return replace(self, scales=codes, nested=torch.cat([nested, offset[None]]))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        own = {"codes": self.codes, "scales": self.scales}
        return own if self.nested is None else own | {"nested": self.nested}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        return replace(self, **tensors)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        block, levels = _BLOCKS[self.name]
        width = self.shape[1]
        first, last = start * width, (start + len(rows_RI)) * width
        if first % block or last % block:  # blocks that lie over the ends of rows
            low, high = first // block * block, -(-last // block) * block
            whole = torch.empty(high - low, dtype=torch.float32, device=rows_RI.device)
            self._fill_blocks(whole, low, block, levels)
            rows_RI.copy_(whole[first - low : last - low].view(rows_RI.shape))
        else:
            self._fill_blocks(rows_RI.view(-1), first, block, levels)

    def _fill_blocks(self, out: Tensor, first: int, block: int, levels: tuple[float, ...]) -> None:
        table = pairs_of_nibbles(levels, self.codes.device)

        def write(start: int, piece: Tensor) -> None:
            place = first + start
            codes = self.codes[place // 2 : (place + len(piece)) // 2]
            look_up(codes, table, piece[: 2 * len(codes)])
            scales = self._scales(place // block, (place + len(piece)) // block)
            piece.view(-1, block).mul_(scales[:, None])

        in_pieces(out, block, write)

    def _scales(self, start: int, stop: int) -> Tensor:
        scales = self.scales[start:stop]
        if self.nested is None:
            return scales.float()
        map256 = torch.tensor(DYNAMIC, device=scales.device)
        places = torch.arange(start, stop, device=scales.device) // _NESTED
        return map256[scales.int()] * self.nested[:-1][places] + self.nested[-1]


def _shape(weight_OI: Tensor) -> tuple[int, int]:
    out, width = weight_OI.shape
    return out, width


def _in_blocks(weight: Tensor, block: int) -> Tensor:
    """The flattened weight in float32 as (blocks, block), the last filled up with zeros."""
    flat = weight.detach().reshape(-1).to(torch.float32)
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def _halves(codes: Tensor) -> Tensor:
    """Codes, one a byte -> two a byte; whole blocks are kept, the spare elements of the last too."""
    flat = codes.view(-1, 2)
    return (flat[:, 0] << 4) | flat[:, 1]
