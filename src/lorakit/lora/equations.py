"""The equations of low-rank adaptation (Hu et al., arXiv 2106.09685), in plain functions.

    W' = W + s · B · A        A: (rank, in_features)   B: (out_features, rank)
    y  = W x + s · B (A x)    s = alpha / rank, or alpha / sqrt(rank)

W is frozen; only A and B are trained. B starts at zero, so the adapted model is the base model
until the first step. This file is the oracle for `fused.py` and is written to be read beside the
paper; nothing here is tuned for speed.

Legend: T tokens (any leading dimensions, flattened), r rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def scale(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """s = alpha / rank (arXiv 2106.09685, section 4.1) or alpha / sqrt(rank) (arXiv 2312.03732).

    >>> scale(32, 8), scale(32, 16, rslora=True)
    (4.0, 8.0)
    """
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def kaiming_bound(fan_in: int) -> float:
    """Half-width of A's uniform start, sqrt(6 / ((1 + a²) · fan_in)) with a = sqrt(5).

    That is 1 / sqrt(fan_in): the start of `torch.nn.Linear`, which loralib and peft use for A.
    """
    return math.sqrt(6.0 / ((1.0 + 5.0) * fan_in))


def low_rank(x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """s · B (A x) for rows x.

    Args:
        x: (…, in_features).
        A: (rank, in_features).
        B: (out_features, rank).
        s: the scale.

    Returns:
        (…, out_features).
    """
    return s * (x @ A.T) @ B.T


def forward(x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """y = W x + b + s · B (A x).

    Args:
        x: (…, in_features).
        W: (out_features, in_features), frozen.
        bias: (out_features,) or None, frozen.
    """
    y = x @ W.T + low_rank(x, A, B, s)
    return y if bias is None else y + bias


def gradients(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that LoRA needs, and no other: dL/dx, dL/dA, dL/dB.

    With h = A x and g = dL/dy, summed over rows:

        dL/dB = s · gᵀ h        dL/dA = s · (g B)ᵀ x        dL/dx = g W + s · (g B) A

    Args:
        x: (T, in_features).
        grad_y: (T, out_features).

    Returns:
        (T, in_features), (rank, in_features), (out_features, rank).
    """
    grad_h = s * grad_y @ B
    return grad_y @ W + grad_h @ A, grad_h.T @ x, s * grad_y.T @ (x @ A.T)


def delta(A: Tensor, B: Tensor, s: float) -> Tensor:
    """ΔW = s · B · A in float32 (float64 stays), (out_features, in_features, *kernel).

    A convolution's A is (rank, in_channels, *kernel) and its B (out_channels, rank, 1, …): a
    convolution to `rank` channels followed by one of kernel 1, so the product runs over the rank.
    """
    import torch

    kind = torch.promote_types(A.dtype, torch.float32)
    product = B.to(kind).flatten(1) @ A.to(kind).flatten(1)
    return s * product.view(B.shape[0], *A.shape[1:])


def merge(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """W' = W + s · B · A, added in float32 and rounded once to W's dtype; W is not changed."""
    update = delta(A, B, s)
    return (W.to(update.dtype) + update).to(W.dtype)


def trainable_parameters(in_features: int, out_features: int, rank: int) -> int:
    """rank · (in_features + out_features), the size of A and B together.

    >>> trainable_parameters(64, 512, 8)
    4608
    """
    return rank * (in_features + out_features)
