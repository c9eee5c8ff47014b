"""A linear layer that computes with W + s·B·A quantized: what it will compute once it is merged.

    M  = dequantized(quantized(W + s·B·A))
    y  = x Mᵀ + b            dx = g M
    dA = s Bᵀ (gᵀ x)         dB = s (gᵀ x) Aᵀ

Rounding has a slope of 0 almost everywhere. The gradients of A and B pass through it as if it were the
identity (the straight-through estimator, Bengio et al., arXiv 1308.3432), which leaves those of the
unrounded layer; x gets that of what was computed.

Legend: T rows, I in_features, O out_features, r rank.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.packed.four_bits import FourBits
from lorakit.kernels.packed.int8 import Int8
from lorakit.kernels.packed.packing import Packing
from lorakit.kernels.packed.weight import LARGEST, PackedWeight
from lorakit.kernels.weights import FrozenWeight

Rounding = Literal["nf4", "int8"]
_STEP = 64  # rows, so that a block of NF4 lies in one piece whatever the width


class RoundedSum:
    """W + s·B·A in a packing, made anew when A or B have changed.

    What A and B were is kept beside it: an optimizer that moves them through another view of their
    memory leaves no other trace.
    """

    def __init__(self, how: Rounding) -> None:
        self.how = how
        self._made: tuple[Packing, Tensor, Tensor, float] | None = None

    def of(self, weight: FrozenWeight, A_rI: Tensor, B_Or: Tensor, scale: float) -> Packing:
        """The packing of the sum as A and B are now."""
        if self._made is not None:
            packing, A, B, s = self._made
            if A.device == A_rI.device and s == scale and A.equal(A_rI) and B.equal(B_Or):
                return packing
        A, B = A_rI.detach().clone(), B_Or.detach().clone()
        packing = quantized_sum(self.how, weight, A, B, scale)
        self._made = packing, A, B, scale
        return packing


@torch.no_grad()
def quantized_sum(
    how: Rounding, weight: FrozenWeight, A_rI: Tensor, B_Or: Tensor, scale: float
) -> Packing:
    """W + s·B·A, added in float32 and quantized, block of rows by block of rows.

    Args:
        how: nf4 with scales in float32, as merging writes it, or int8.
        weight: W.
        A_rI, B_Or: the pair, in float32 or float64.
        scale: s.
    """
    out, width = weight.shape
    many = max(LARGEST // max(width, 1) // _STEP, 1) * _STEP
    fours, eights = [], []
    for start in range(0, out, many):
        stop = min(start + many, out)
        rows_RI = weight.rows(start, stop).to(A_rI.dtype)
        rows_RI = torch.addmm(rows_RI, B_Or[start:stop], A_rI, alpha=scale)
        if how == "nf4":
            fours.append(FourBits.nf4(rows_RI, double=False))
        else:
            eights.append(Int8.of(rows_RI))
    if how == "nf4":
        codes = torch.cat([block.codes for block in fours])
        return FourBits("nf4", (out, width), codes, torch.cat([block.scales for block in fours]))
    quants = torch.cat([block.quants for block in eights])
    return Int8(quants, torch.cat([block.scales for block in eights]))


def rounded_linear(
    x: Tensor, packing: Packing, bias: Tensor | None, A_rI: Tensor, B_Or: Tensor, scale: float
) -> Tensor:
    """M x + b, (…, in_features) -> (…, out_features), with straight-through gradients of A and B.

    Args:
        x: the input.
        packing: M; see `RoundedSum`.
        bias: b, frozen.
        A_rI, B_Or, scale: the pair that is in M.
    """
    rows_TI = x.reshape(-1, x.shape[-1])
    y_TO: Tensor = _RoundedLinear.apply(rows_TI, packing, A_rI, B_Or, scale)
    if bias is not None:
        y_TO = y_TO + bias.to(y_TO.dtype)
    return y_TO.view(*x.shape[:-1], packing.shape[0])


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, packing: Packing, A_rI: Tensor, B_Or: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x_TI, A_rI, B_Or)
        ctx.packing, ctx.scale = packing, scale
        return PackedWeight(packing, x_TI.dtype).product(x_TI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, A_rI, B_Or = ctx.saved_tensors
        kind, grad_TO = x_TI.dtype, grad_TO.contiguous()
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = PackedWeight(ctx.packing, kind).input_gradient(grad_TO)
        if ctx.needs_input_grad[2]:
            grad_h_Tr = grad_TO @ (B_Or * ctx.scale).to(kind)
            grad_A = (grad_h_Tr.t() @ x_TI).to(A_rI.dtype)
        if ctx.needs_input_grad[3]:
            h_Tr = x_TI @ (A_rI * ctx.scale).to(kind).t()
            grad_B = (grad_TO.t() @ h_Tr).to(B_Or.dtype)
        return grad_x, None, grad_A, grad_B, None
