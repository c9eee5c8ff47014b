"""4 bits: each block of a flattened weight is one scale times one of 16 levels for each element.

nf4     W = level[q] · absmax, blocks of 64; levels are quantiles of a normal distribution, so that
        each is as likely as any other (QLoRA, Dettmers et al., arXiv 2305.14314). The tensors are
        those of bitsandbytes, and with `double` its scales are packed as well, as QLoRA does it:
        absmax = map[c] · nested + offset, with 8 bits c and blocks of 256
int4    W = q · scale + offset, q from 0 to 15, blocks of 32: the offset is the block's least element, the scale
        a 15th of its range, as llama.cpp's Q4_1 has it; both in bfloat16
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import PackedLayout, levels
from lorakit.kernels.packed.dynamic_map import DYNAMIC
from lorakit.kernels.packed.lookup import in_pieces, look_up, pairs_of_nibbles

# Of table 5 of the paper's appendix E, in the digits of bitsandbytes.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
INT4_LEVELS = tuple(float(q) for q in range(16))
_BLOCKS = {"nf4": (64, NF4_LEVELS), "int4": (32, INT4_LEVELS)}
_NESTED = 256
_PART = 4096


@dataclass(frozen=True, eq=False)
class FourBits:
    """A weight of 16 levels.

    Attributes:
        name: "nf4" or "int4".
        shape: (out_features, in_features).
        codes: (half the elements of whole blocks,), uint8, two codes each, the first in the upper half.
        scales: one a block: float32 or bfloat16, or uint8 where they are packed too.
        nested: (⌈blocks / 256⌉ + 1,), float32: scales of the scales, and their offset last; or None.
        offsets: what is added to the elements of each block, bfloat16; or None.
    """

    name: str
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    nested: Tensor | None = None
    offsets: Tensor | None = None

    @classmethod
    def nf4(cls, weight_OI: Tensor, *, double: bool = True) -> Self:
        """Quantize a weight to NF4, its scales to 8 bits if `double`."""
        blocks = _in_blocks(weight_OI, 64)
        low, high = blocks.aminmax(dim=1)
        scales = torch.maximum(high, -low)
        scaled = blocks.div_(torch.where(scales > 0, scales, 1.0)[:, None])
        codes = torch.empty(scaled.shape, dtype=torch.uint8, device=blocks.device)
        for start in range(0, len(scaled), _PART):
            part = slice(start, start + _PART)
            codes[part] = _nearest_nf4(scaled[part])
        packed = cls("nf4", _shape(weight_OI), _halves(codes), scales)
        return packed.doubled() if double else packed

    @classmethod
    def int4(cls, weight_OI: Tensor) -> Self:
        """Quantize a weight to 4-bit integers."""
        blocks = _in_blocks(weight_OI, 32)
        low, high = blocks.aminmax(dim=1)
        scales, offsets = ((high - low) / 15).to(torch.bfloat16), low.to(torch.bfloat16)
        wide = scales.float()
        steps = torch.where(wide == 0, 1.0, wide)[:, None]
        codes = blocks.sub_(offsets.float()[:, None]).div_(steps).round_().clamp_(0, 15)
        halves = _halves(codes.to(torch.uint8))
        return cls("int4", _shape(weight_OI), halves, scales, offsets=offsets)

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
        more = {"nested": self.nested, "offsets": self.offsets}
        return own | {name: tensor for name, tensor in more.items() if tensor is not None}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        made: Any = tensors
        return replace(self, **made)

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

    def layout(self) -> PackedLayout:
        """As the compiled kernels read it."""
        block, values = _BLOCKS[self.name]
        parts = (self.shape, self.codes, self.scales, self.offsets, block, levels(values))
        if self.nested is None:
            return PackedLayout("nibbles" if self.offsets is None else "nibbles offset", *parts)
        more = (levels(DYNAMIC), self.nested[:-1], self.nested[-1:], _NESTED)
        return PackedLayout("nibbles nested", *parts, *more)

    def _fill_blocks(self, out: Tensor, first: int, block: int, levels: tuple[float, ...]) -> None:
        table = pairs_of_nibbles(levels, self.codes.device)

        def write(start: int, piece: Tensor) -> None:
            place = first + start
            codes = self.codes[place // 2 : (place + len(piece)) // 2]
            look_up(codes, table, piece[: 2 * len(codes)])
            low, high = place // block, (place + len(piece)) // block
            blocks = piece.view(-1, block).mul_(self._scales(low, high)[:, None])
            if self.offsets is not None:
                blocks.add_(self.offsets[low:high, None])

        in_pieces(out, block, write)

    def _scales(self, start: int, stop: int) -> Tensor:
        scales = self.scales[start:stop]
        if self.nested is None:
            return scales.float()
        low = start // _NESTED
        nested = self.nested[low : -(-stop // _NESTED)].repeat_interleave(_NESTED)
        nested = nested[start - low * _NESTED :][: stop - start]
        return _map256(scales.device)[scales.int()].mul_(nested).add_(self.nested[-1])


@cache
def _map256(device: torch.device) -> Tensor:
    return torch.tensor(DYNAMIC, device=device)


def _nearest_nf4(values: Tensor) -> Tensor:
    """Which level each value in [-1, 1] is nearest to: how many middles between levels lie below it.

    A table says it of 65,536 equal cells; in the 15 that hold a middle the value is compared with it.
    """
    below, middles = _cells(values.device)
    cells = _cell_of(values).view(-1)
    codes = below.index_select(0, cells).view(values.shape)
    return codes.add_(values > middles.index_select(0, cells).view(values.shape))


def _cell_of(values: Tensor) -> Tensor:
    return values.add(1).mul_(32767.5).to(torch.int32)


@cache
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each cell the middles in lower ones, uint8, and its own middle, or infinity."""
    levels = torch.tensor(NF4_LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    own = torch.full((65536,), torch.inf)
    holding = _cell_of(between)
    own[holding] = between
    below = (holding[:, None] < torch.arange(65536)).sum(0)
    return below.to(device, torch.uint8), own.to(device)


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
