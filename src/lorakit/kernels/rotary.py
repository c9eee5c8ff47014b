"""Rotary position embedding on rows of heads, with its backward: the same rotation turned back.

    (x₁, x₂) -> (x₁ cos - x₂ sin, x₂ cos + x₁ sin)     x₁, x₂: the two halves of a head

(arXiv 2104.09864, in the half-split layout that the llama family uses.) Nothing but the angles is
kept; under autograd the formula of transformers makes six passes over the heads and a copy.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.gpu import dispatch


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """The heads of each token turned by its angles, (T, H, D).

    Args:
        x_THD: queries or keys.
        cos_TD: of the angles, both halves alike, as transformers hands them out; scaled where the
            model scales them.
        sin_TD: likewise.
    """
    half = x_THD.shape[-1] // 2
    return _Rotate.apply(x_THD, cos_TD[:, None, :half], sin_TD[:, None, :half])


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1E, sin_T1E)
        return _turned(x_THD, cos_T1E, sin_T1E, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        cos_T1E, sin_T1E = ctx.saved_tensors
        return _turned(grad_THD, cos_T1E, sin_T1E, -1.0), None, None


def _turned(x_THD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, sign: float) -> Tensor:
    turned: Tensor = dispatch.run("turned", _plain_turned, x_THD, cos_T1E, sin_T1E, sign)
    return turned


def _plain_turned(x_THD: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, sign: float) -> Tensor:
    x1, x2 = x_THD.chunk(2, dim=-1)
    out = torch.empty_like(x_THD)
    y1, y2 = out.chunk(2, dim=-1)
    torch.mul(x1, cos_T1E, out=y1).addcmul_(x2, sin_T1E, value=-sign)
    torch.mul(x2, cos_T1E, out=y2).addcmul_(x1, sin_T1E, value=sign)
    return out
