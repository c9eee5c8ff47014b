"""The products with a rank of a low-rank linear layer in Triton, read from A and B as they are kept.

    y = x Wᵀ + s (x Aᵀ) Bᵀ     forward:   h = x Aᵀ           `project`      y = s h Bᵀ, then torch adds x Wᵀ     `expand`
                               backward:  dh = s g B         `project`      dx = dh A, then torch adds g W       `expand`
                                          dA = dhᵀ x         `outer`        dB = s gᵀ h                          `outer`

The products with W are cuBLAS's, which accumulates them onto what `expand` wrote. A and B stay in float32 in
memory: casting them, and folding in the scale, is part of the kernels. Sums over rows are taken in float32, in parts
of fixed size and order, so that the same inputs give the same bits.

Legend: T rows, N wide, R rank.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 1024  # of which a program of `outer` takes the sum


def project(x_TN: Tensor, matrix_RN: Tensor, scale: float) -> Tensor:
    """x (s·M)ᵀ, a new (T, R) in x's format; M of any strides."""
    x_TN = _rows(x_TN)
    (rows, width), rank = x_TN.shape, matrix_RN.shape[0]
    out_TR = torch.empty(rows, rank, dtype=x_TN.dtype, device=x_TN.device)
    block_r = _block_of_rank(rank)
    _project[(triton.cdiv(rows, 32), triton.cdiv(rank, block_r))](
        *(x_TN, matrix_RN, out_TR, x_TN.stride(0), *matrix_RN.stride()),
        *(rows, width, rank, float(scale)),
        PRECISE=_precise(x_TN),
        BLOCK_T=32,
        BLOCK_N=64,
        BLOCK_R=block_r,
    )
    return out_TR


def expand(h_TR: Tensor, matrix_RN: Tensor, scale: float, onto_TN: Tensor | None) -> Tensor:
    """h (s·M) [+ onto], a new (T, N) in h's format; M of any strides."""
    h_TR = _rows(h_TR)
    (rows, rank), width = h_TR.shape, matrix_RN.shape[1]
    out_TN = torch.empty(rows, width, dtype=h_TR.dtype, device=h_TR.device)
    onto = out_TN if onto_TN is None else _rows(onto_TN)
    _expand[(triton.cdiv(rows, 64), triton.cdiv(width, 64))](
        *(h_TR, matrix_RN, onto, out_TN, h_TR.stride(0), *matrix_RN.stride()),
        *(onto.stride(0), rows, width, rank, float(scale)),
        PRECISE=_precise(h_TR),
        ADDED=onto_TN is not None,
        BLOCK_T=64,
        BLOCK_N=64,
        BLOCK_R=_block_of_rank(rank, 64),
    )
    return out_TN


def outer(h_TR: Tensor, x_TN: Tensor, scale: float, turn: bool) -> Tensor:
    """s·hᵀ x in float32, a new (R, N), or (N, R) with `turn`."""
    h_TR, x_TN = _rows(h_TR), _rows(x_TN)
    (rows, rank), width = h_TR.shape, x_TN.shape[1]
    parts = triton.cdiv(rows, _ROWS)
    shape = (parts, width, rank) if turn else (parts, rank, width)
    partial = torch.empty(shape, dtype=torch.float32, device=x_TN.device)
    by_rank, by_width = (1, rank) if turn else (width, 1)
    block_r = _block_of_rank(rank, 64)
    _outer[(parts, triton.cdiv(width, 64), triton.cdiv(rank, block_r))](
        *(h_TR, x_TN, partial, h_TR.stride(0), x_TN.stride(0), by_rank, by_width),
        *(rows, width, rank, float(scale)),
        PRECISE=_precise(x_TN),
        ROWS=_ROWS,
        BLOCK_T=32,
        BLOCK_N=64,
        BLOCK_R=block_r,
    )
    return partial[0] if parts == 1 else partial.sum(0)


def _rows(x_TN: Tensor) -> Tensor:
    """Itself where the elements of a row are neighbours, else a copy where they are."""
    return x_TN if x_TN.stride(-1) == 1 else x_TN.contiguous()


def _precise(x_TN: Tensor) -> bool:
    """Whether products are taken in float32: of float32, and in Triton's interpreter, which multiplies the
    bits of bfloat16 as if they were integers (3.7.1). A product of two 16-bit numbers is exact there."""
    return x_TN.dtype == torch.float32 or x_TN.device.type == "cpu"


def _block_of_rank(rank: int, most: int = 128) -> int:
    """A power of two that tensor cores take: 16 at the least."""
    return min(most, max(16, triton.next_power_of_2(rank)))


@triton.jit
def _project(
    x, matrix, out, x_stride, by_rank, by_width, rows, width, rank, scale,
    PRECISE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for start in range(0, width, BLOCK_N):
        at = start + n
        x_tile = tl.load(
            x + t[:, None] * x_stride + at[None, :],
            mask=(t[:, None] < rows) & (at[None, :] < width),
            other=0.0,
        )
        m_tile = tl.load(
            matrix + r[None, :] * by_rank + at[:, None] * by_width,
            mask=(r[None, :] < rank) & (at[:, None] < width),
            other=0.0,
        )
        m_tile = (m_tile.to(tl.float32) * scale).to(x.dtype.element_ty)
        if PRECISE:
            x_tile, m_tile = x_tile.to(tl.float32), m_tile.to(tl.float32)
            total = tl.dot(x_tile, m_tile, total, input_precision="ieee")
        else:
            total = tl.dot(x_tile, m_tile, total)
    inside = (t[:, None] < rows) & (r[None, :] < rank)
    tl.store(out + t[:, None] * rank + r[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _expand(
    h, matrix, onto, out, h_stride, by_rank, by_width, onto_stride, rows, width, rank, scale,
    PRECISE: tl.constexpr, ADDED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for start in range(0, rank, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        h_tile = tl.load(
            h + t[:, None] * h_stride + r[None, :],
            mask=(t[:, None] < rows) & (r[None, :] < rank),
            other=0.0,
        )
        m_tile = tl.load(
            matrix + r[:, None] * by_rank + n[None, :] * by_width,
            mask=(r[:, None] < rank) & (n[None, :] < width),
            other=0.0,
        )
        m_tile = (m_tile.to(tl.float32) * scale).to(h.dtype.element_ty)
        if PRECISE:
            h_tile, m_tile = h_tile.to(tl.float32), m_tile.to(tl.float32)
            total = tl.dot(h_tile, m_tile, total, input_precision="ieee")
        else:
            total = tl.dot(h_tile, m_tile, total)
    inside = (t[:, None] < rows) & (n[None, :] < width)
    if ADDED:
        added = tl.load(onto + t[:, None] * onto_stride + n[None, :], mask=inside, other=0.0)
        total += added.to(tl.float32)
    tl.store(out + t[:, None] * width + n[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _outer(
    h, x, partial, h_stride, x_stride, by_rank, by_width, rows, width, rank, scale,
    PRECISE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, ROWS, BLOCK_T):
        t = part * ROWS + start + tl.arange(0, BLOCK_T)
        h_tile = tl.load(
            h + t[None, :] * h_stride + r[:, None],
            mask=(t[None, :] < rows) & (r[:, None] < rank),
            other=0.0,
        )
        x_tile = tl.load(
            x + t[:, None] * x_stride + n[None, :],
            mask=(t[:, None] < rows) & (n[None, :] < width),
            other=0.0,
        )
        if PRECISE:
            h_tile, x_tile = h_tile.to(tl.float32), x_tile.to(tl.float32)
            total = tl.dot(h_tile, x_tile, total, input_precision="ieee")
        else:
            total = tl.dot(h_tile, x_tile, total)
    place = partial + part * rank * width + r[:, None] * by_rank + n[None, :] * by_width
    tl.store(place, total * scale, mask=(r[:, None] < rank) & (n[None, :] < width))
