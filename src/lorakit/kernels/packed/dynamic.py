"""Flat numbers in 8 bits: blocks of 256, each with a scale in float32 and a level of the dynamic map an element.

    x = level[q] · absmax        arXiv 2110.02861

Packing finds the nearest level by a table: the first bits of a number say which level lies below it or at it, and one
comparison whether the next one is nearer. No two borders of levels agree in these bits. A search among the borders
takes 32 ns a number on one core, the table 3.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lorakit.kernels.packed.dynamic_map import DYNAMIC, DYNAMIC_UNSIGNED

BLOCK = 256
# Sign, exponent and 8 bits of the fraction: neighbours differ by 0.4 %, levels by 0.7 % and more.
_DROPPED = 15
_PLACES = 1 << (32 - _DROPPED)


@dataclass(frozen=True, eq=False)
class Levels:
    """A map, and what finds the nearest of its levels.

    Attributes:
        levels: (256,), rising.
        borders: (256,): above which number the next level is taken; of the last one infinity.
        below: (2^17,) of uint8: of the least number with these first bits, its level.
    """

    levels: Tensor
    borders: Tensor
    below: Tensor


@cache
def levels(device: torch.device, *, signed: bool) -> Levels:
    """The map for numbers of both signs, or for those that are not negative.

    Without a sign no number above zero becomes zero: of a second moment the root divides.
    """
    of = torch.tensor(DYNAMIC if signed else DYNAMIC_UNSIGNED, dtype=torch.float32)
    borders = torch.cat([(of[:-1] + of[1:]) / 2, torch.tensor([torch.inf])])
    if not signed:
        borders[0] = 0.0
    bits = (torch.arange(_PLACES, dtype=torch.int32) - _PLACES // 2) << _DROPPED
    least = torch.where(bits < 0, bits | ((1 << _DROPPED) - 1), bits).view(torch.float32)
    below = torch.bucketize(least.nan_to_num(0.0), borders[:-1]).to(torch.uint8)
    return Levels(of.to(device), borders.to(device), below.to(device))


def blocks_of(count: int) -> int:
    """Blocks of so many numbers, the last one perhaps short."""
    return -(-count // BLOCK)


def pack(numbers: Tensor, codes: Tensor, scales: Tensor, *, signed: bool) -> None:
    """Write codes and scales of numbers that begin at a block's border.

    Args:
        numbers: (n,), float32.
        codes: (n,) of uint8.
        scales: (blocks,), float32.
        signed: which map.
    """
    whole = len(numbers) // BLOCK * BLOCK
    of = levels(numbers.device, signed=signed)
    for first, last, width in ((0, whole, BLOCK), (whole, len(numbers), len(numbers) - whole)):
        if first < last:
            part = slice(first, last)
            some = scales[first // BLOCK : blocks_of(last)]
            _pack(numbers[part].view(-1, width), codes[part], some, of)


def _pack(blocks: Tensor, codes: Tensor, scales: Tensor, of: Levels) -> None:
    torch.amax(blocks.abs(), 1, out=scales)
    scaled = (blocks / torch.where(scales > 0, scales, 1.0)[:, None]).flatten()
    places = (scaled.view(torch.int32) >> _DROPPED).add_(_PLACES // 2)
    below = of.below.index_select(0, places)
    above = scaled > of.borders.index_select(0, below.to(torch.int32))
    torch.add(below, above, out=codes)


def unpack(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The numbers, (n,) of float32."""
    of = levels(codes.device, signed=signed)
    found = of.levels.index_select(0, codes.to(torch.int32))
    whole = len(codes) // BLOCK * BLOCK
    found[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    found[whole:].mul_(scales[whole // BLOCK :])
    return found
