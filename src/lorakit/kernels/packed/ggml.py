"""Weights in the blocks of GGUF files: what a row's bytes mean, for each type of block.

A row of W is cut into blocks of 32 or 256 numbers, and a block is a few bytes with scales of its own:

    Q4_0, Q5_0, Q8_0   w = d · q                        q in -8..7, -16..15, -127..127
    Q4_1, Q5_1         w = d · q + m                    q from 0
    Q2_K, Q4_K, Q5_K   w = d · s_g · q - m · t_g        a scale s and a minimum t for each group g
    Q3_K, Q6_K         w = d · s_g · q                  q signed

Everything is computed in float32, in the order of ggml's own reader (`dequantize_row_*` of
https://github.com/ggml-org/ggml, src/ggml-quants.c), so that the numbers are equal to the bit.

Legend: N blocks, R rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import GGML, PackedLayout, levels


@dataclass(frozen=True)
class BlockType:
    """One of ggml's block types.

    Attributes:
        name: as ggml writes it.
        code: its number in a file's table of tensors.
        size: numbers in a block.
        nbytes: bytes of a block.
        unpack: (N, nbytes) of uint8 -> (N, size) of float32.
    """

    name: str
    code: int
    size: int
    nbytes: int
    unpack: Callable[[Tensor], Tensor]

    def columns(self, row_bytes: int) -> int:
        """Numbers in so many bytes."""
        return row_bytes // self.nbytes * self.size


class GgmlBlocks:
    """W as GGUF keeps it: (out_features, bytes of a row) of uint8.

    Attributes:
        kind: the type of its blocks.
        blocks: the bytes; a row of W is a row of bytes.
    """

    def __init__(self, kind: BlockType, blocks: Tensor) -> None:
        self.kind = kind
        self.blocks = blocks

    def checked(self) -> Self:
        """Itself, once its bytes are seen to be rows of such blocks.

        Raises:
            ValueError: they are not.
        """
        blocks, kind = self.blocks, self.kind
        if blocks.dtype != torch.uint8 or blocks.dim() != 2 or blocks.shape[1] % kind.nbytes:
            raise ValueError(f"{tuple(blocks.shape)} of {blocks.dtype} are no rows of {kind.name}")
        return self

    @property
    def name(self) -> str:
        """As ggml writes it, in small letters."""
        return self.kind.name.lower()

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        rows, row_bytes = self.blocks.shape
        return rows, self.kind.columns(row_bytes)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return {"blocks": self.blocks}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        return type(self)(self.kind, tensors["blocks"])

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        blocks = self.blocks[start:stop].reshape(-1, self.kind.nbytes)
        rows_RI.copy_(self.kind.unpack(blocks).view(rows_RI.shape))

    def layout(self) -> PackedLayout | None:
        """As the compiled kernels read it; None for types that they do not know."""
        if self.name not in GGML:
            return None
        least = 8 if self.name == "q4_0" else 0
        table = levels(tuple(float(q - least) for q in range(16)))
        return PackedLayout(self.name, self.shape, self.blocks, table=table)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, as float32: (N, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(data: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """(N, w) bytes -> (N, len(shifts)·w): all bytes at the first shift, then all at the next."""
    return torch.cat([(data >> shift) & mask if shift else data & mask for shift in shifts], 1)


def _by(data: Tensor, width: int, shifts: tuple[int, ...], mask: int) -> Tensor:
    """`_fields` within each run of `width` bytes."""
    N = data.shape[0]
    return _fields(data.reshape(-1, width), shifts, mask).view(N, -1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """32 bits at a byte of each block, the lowest first, each times 16: (N, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    bits = (blocks[:, at : at + 4, None] >> shifts) & 1
    return bits.view(-1, 32) << 4


def _plain(blocks: Tensor, *, bits: int, minimum: bool) -> Tensor:
    """Q4_0, Q4_1, Q5_0, Q5_1: one scale, and one minimum or the middle at zero."""
    at = 4 if minimum else 2
    high = _fifth_bits(blocks, at) if bits == 5 else None
    at += 4 if bits == 5 else 0
    q = blocks[:, at : at + 16].contiguous()
    values = torch.empty(len(blocks), 32, device=blocks.device)
    values[:, :16].copy_(q & 15)
    values[:, 16:].copy_(q >> 4)
    if high is not None:
        values += high
    if minimum:
        return values.mul_(_half(blocks, 0)).add_(_half(blocks, 2))
    return values.sub_(1 << (bits - 1)).mul_(_half(blocks, 0))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float().mul_(_half(blocks, 0))


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits in 12 bytes: ggml's get_scale_min_k4. (N, 8) each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    return scales.float(), minima.float()


def _grouped(q: Tensor, scales: Tensor, minima: Tensor | None) -> Tensor:
    """Groups of equal length, each times its scale, less its minimum: (N, size)."""
    N = q.shape[0]
    values = q.float().view(N, scales.shape[1], -1).mul_(scales[..., None])
    if minima is not None:
        values.sub_(minima[..., None])
    return values.view(N, -1)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, d, m = blocks[:, :16], _half(blocks, 80), _half(blocks, 82)
    q = _by(blocks[:, 16:80], 32, (0, 2, 4, 6), 3)
    return _grouped(q, (scales & 15).float() * d, (scales >> 4).float() * m)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 96:104], (0, 4), 15)
    scales = (low | (_fields(blocks[:, 104:108], (0, 2, 4, 6), 3) << 4)).float().sub_(32)
    q = _by(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).float()
    # A bit that is not set takes 4 away.
    q = q.add_(_fields(blocks[:, :32], tuple(range(8)), 1), alpha=4).sub_(4)
    return _grouped(q, scales * _half(blocks, 108), None)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    q = _by(blocks[:, 16:], 32, (0, 4), 15)
    return _grouped(q, scales * _half(blocks, 0), minima * _half(blocks, 2))


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    q = _by(blocks[:, 48:], 32, (0, 4), 15)
    q = q | (_fields(blocks[:, 16:48], tuple(range(8)), 1) << 4)
    return _grouped(q, scales * _half(blocks, 0), minima * _half(blocks, 2))


def _q6_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    low = _by(blocks[:, :128], 64, (0, 4), 15)
    q = low | (_by(blocks[:, 128:192], 32, (0, 2, 4, 6), 3) << 4)
    return _grouped(q.float().sub_(32), scales, None)


BLOCK_TYPES = {
    kind.name: kind
    for kind in (
        BlockType("Q4_0", 2, 32, 18, partial(_plain, bits=4, minimum=False)),
        BlockType("Q4_1", 3, 32, 20, partial(_plain, bits=4, minimum=True)),
        BlockType("Q5_0", 6, 32, 22, partial(_plain, bits=5, minimum=False)),
        BlockType("Q5_1", 7, 32, 24, partial(_plain, bits=5, minimum=True)),
        BlockType("Q8_0", 8, 32, 34, _q8_0),
        BlockType("Q2_K", 10, 256, 84, _q2_k),
        BlockType("Q3_K", 11, 256, 110, _q3_k),
        BlockType("Q4_K", 12, 256, 144, _q4_k),
        BlockType("Q5_K", 13, 256, 176, _q5_k),
        BlockType("Q6_K", 14, 256, 210, _q6_k),
    )
}
"""The types that are read here, by name."""
