"""Rotary position embedding in Triton: the two halves of a head in one pass, a token to a program.

    (x₁, x₂) -> (x₁ cos - x₂ sin, x₂ cos + x₁ sin)        the backward turns back: sin with the other sign

Legend: T tokens, H heads, E half the width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def turned(x_THD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, sign: float) -> Tensor:
    """The heads of each token turned by its angles, or back with sign -1: a new (T, H, D)."""
    if x_THD.stride(-1) != 1:
        x_THD = x_THD.contiguous()
    if cos_T1E.stride(-1) != 1 or sin_T1E.stride() != cos_T1E.stride():
        cos_T1E, sin_T1E = cos_T1E.contiguous(), sin_T1E.contiguous()
    tokens, heads, width = x_THD.shape
    out_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    block_h = min(16, triton.next_power_of_2(heads))
    _turn[(tokens, triton.cdiv(heads, block_h))](
        *(x_THD, cos_T1E, sin_T1E, out_THD),
        *(x_THD.stride(0), x_THD.stride(1), cos_T1E.stride(0), heads, width // 2, float(sign)),
        BLOCK_H=block_h,
        BLOCK_E=triton.next_power_of_2(width // 2),
    )
    return out_THD


@triton.jit
def _turn(
    x, cos, sin, out, token_stride, head_stride, angle_stride, heads, half, sign,
    BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    place = tl.arange(0, BLOCK_E)
    c = tl.load(cos + token * angle_stride + place, mask=place < half, other=0.0).to(tl.float32)
    s = tl.load(sin + token * angle_stride + place, mask=place < half, other=0.0).to(tl.float32)
    c, s = c[None, :], s[None, :] * sign
    inside = (head[:, None] < heads) & (place[None, :] < half)
    first = x + token * token_stride + head[:, None] * head_stride + place[None, :]
    x1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    target = out + (token * heads + head[:, None]) * 2 * half + place[None, :]
    tl.store(target, (x1 * c - x2 * s).to(out.dtype.element_ty), mask=inside)
    tl.store(target + half, (x2 * c + x1 * s).to(out.dtype.element_ty), mask=inside)
