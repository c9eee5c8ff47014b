"""The hot path of a whole transformer block: what stands between two attentions, written out.

    q, k, v = L_q(n), L_k(n), L_v(n)          n = norm(x)                   `normed_group`
    x'      = x + L_o(o)                                                    `residual_linear`
    x''     = x' + L_d(silu(L_g(n)) * L_u(n)) n = norm(x')                  `gated_mlp`

where L(n) = W n + b + s·B (A n) wherever a pair is attached, W n + b where none is, and
norm(x) = w · x / sqrt(mean(x²) + ε) (RMSNorm, arXiv 1910.07467); silu(g) * u is SwiGLU
(arXiv 2002.05202).

What is saved over the same formulas under autograd: linears that share an input share one product
with all their A's (24 columns in place of three times 8) and one gradient of that input; the
residual is added inside the matmul; n and silu(g)·u, which are cheap, are computed again in the
backward instead of kept: of a block's T × (6 D + 3 M + …) numbers, T × (2 D + M) fewer stay in
memory (D width, M intermediate width), and another T × (2 D + M) that autograd would keep inside
the norms and the activation. Weights take gradients where they want one: full fine-tuning runs
through the same functions.

The oracle is `equations.forward` and autograd through the formulas above; the tests compare both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.lora.products import add_product, product

# Rows of an element-wise chain taken at once: what lies between its passes stays in a cache.
_ROWS = 256


@dataclass(frozen=True)
class Linear:
    """The tensors of one linear layer, with or without a pair.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        A: (rank, in_features), or None without a pair.
        B: (out_features, rank), or None.
        scale: s.
    """

    weight: Tensor
    bias: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    scale: float = 0.0


def normed_group(
    x_TD: Tensor, norm_D: Tensor, eps: float, linears: Sequence[Linear]
) -> tuple[Tensor, ...]:
    """L_i(norm(x)) for linears that share their input: (T, out_i) each.

    Args:
        x_TD: the residual stream.
        norm_D: weight of the RMSNorm.
        eps: its ε.
        linears: of input width D.
    """
    scales, tensors = _flat(linears)
    return _NormedGroup.apply(x_TD, norm_D, eps, scales, *tensors)


def residual_linear(x_TO: Tensor, o_TI: Tensor, linear: Linear) -> Tensor:
    """x + L(o): (T, out_features)."""
    scales, tensors = _flat([linear])
    return _ResidualLinear.apply(x_TO, o_TI, scales, *tensors)


def gated_mlp(
    x_TD: Tensor, norm_D: Tensor, eps: float, gate: Linear, up: Linear, down: Linear
) -> Tensor:
    """x + L_down(silu(L_gate(n)) * L_up(n)) with n = norm(x): (T, D)."""
    scales, tensors = _flat([gate, up, down])
    return _GatedMLP.apply(x_TD, norm_D, eps, scales, *tensors)


def _flat(linears: Sequence[Linear]) -> tuple[tuple[float, ...], list[Tensor | None]]:
    """Scales, and the tensors one after another, as autograd wants them: four for each linear."""
    tensors = [t for each in linears for t in (each.weight, each.bias, each.A, each.B)]
    return tuple(each.scale for each in linears), tensors


class _Group:
    """Linears that share an input n: (T, in_features); forward and backward as plain functions."""

    def __init__(self, scales: Sequence[float], tensors: Sequence[Tensor | None]) -> None:
        self.linears = [
            Linear(tensors[i], tensors[i + 1], tensors[i + 2], tensors[i + 3], scale)  # type: ignore[arg-type]
            for i, scale in zip(range(0, len(tensors), 4), scales, strict=True)
        ]
        # The columns of h that belong to each linear; (0, 0) without a pair.
        self.columns: list[slice] = []
        start = 0
        for each in self.linears:
            rank = 0 if each.A is None else each.A.shape[0]
            self.columns.append(slice(start, start + rank))
            start += rank
        self.rank = start

    def A(self, like: Tensor) -> Tensor:
        """All A's under one another, (R, in_features), in the dtype of the activations."""
        return torch.cat([each.A for each in self.linears if each.A is not None]).to(like.dtype)

    def low(self, n_TI: Tensor) -> Tensor | None:
        """h = n Aᵀ for all pairs together, (T, R); None where there is no pair."""
        return n_TI @ self.A(n_TI).t() if self.rank else None

    def forward(self, n_TI: Tensor, h_TR: Tensor | None, i: int, onto: Tensor | None) -> Tensor:
        """L_i(n), or onto + L_i(n): (T, out_i).

        The low-rank product comes first and the base's is added to it in the matmul. In 16 bits it
        would be lost the other way round: what is less than half a unit in the last place of a
        number that is rounded already changes nothing, and of the residual stream, whose numbers
        are large, that is nearly all of it.
        """
        each = self.linears[i]
        if each.B is None or h_TR is None:
            y_TO = product(n_TI, each.weight.t(), onto)
        else:
            h, sB = h_TR[:, self.columns[i]], _scaled(each, n_TI)
            before = onto if n_TI.dtype in (torch.float32, torch.float64) else None
            y_TO = h @ sB.t() if before is None else torch.addmm(before, h, sB.t())
            add_product(y_TO, n_TI, each.weight.t())
            if before is None and onto is not None:
                y_TO.add_(onto)
        if each.bias is not None:
            y_TO.add_(each.bias)
        return y_TO

    def gradient_h(self, grads: Sequence[Tensor]) -> Tensor | None:
        """gradient of h, (T, R)."""
        if not self.rank:
            return None
        parts = [
            grad_TO @ _scaled(each, grad_TO, rows_of_rank=True).t()
            for each, grad_TO in zip(self.linears, grads, strict=True)
            if each.B is not None
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def gradient_input(self, grads: Sequence[Tensor], grad_h_TR: Tensor | None) -> Tensor:
        """Σ_i grad_i W_i + grad_h A: (T, in_features), accumulated in one buffer."""
        if grad_h_TR is None:
            grad_TI = product(grads[0], self.linears[0].weight)
        else:  # first, as in the forward
            grad_TI = grad_h_TR @ self.A(grads[0])
            add_product(grad_TI, grads[0], self.linears[0].weight)
        for each, grad_TO in zip(self.linears[1:], grads[1:], strict=True):
            add_product(grad_TI, grad_TO, each.weight)
        return grad_TI

    def gradients(
        self,
        grads: Sequence[Tensor],
        n_TI: Tensor,
        h_TR: Tensor | None,
        grad_h_TR: Tensor | None,
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients of weight, bias, A and B of each linear, None where nobody wants one."""
        out: list[Tensor | None] = []
        grad_A = None
        if grad_h_TR is not None and any(needs[2::4]):
            grad_A = grad_h_TR.t() @ n_TI
        for i, (each, grad_TO) in enumerate(zip(self.linears, grads, strict=True)):
            wants_weight, wants_bias, wants_A, wants_B = needs[4 * i : 4 * i + 4]
            columns = self.columns[i]
            out += [grad_TO.t() @ n_TI if wants_weight else None]
            out += [grad_TO.sum(0) if wants_bias else None]
            if wants_A and each.A is not None and grad_A is not None:
                out += [grad_A[columns].to(each.A.dtype)]
            else:
                out += [None]
            if wants_B and each.B is not None and h_TR is not None:
                grad_B = (h_TR[:, columns].t() @ grad_TO).t()
                out += [grad_B.to(each.B.dtype).mul(each.scale)]
            else:
                out += [None]
        return out


def _scaled(linear: Linear, like: Tensor, *, rows_of_rank: bool = False) -> Tensor:
    """s·B in the dtype of the activations, (out, R), or laid out as (R, out): see fused.py."""
    assert linear.B is not None
    scaled = (linear.scale * linear.B).to(like.dtype)
    return scaled.t().contiguous() if rows_of_rank else scaled


def _norm(x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor) -> Tensor:
    """norm(x), given 1 / sqrt(mean(x²) + ε)."""
    if x_TD.dtype == rstd_T1.dtype:
        return (x_TD * rstd_T1).mul_(weight_D)
    # In 16 bits the quotient is rounded before it is weighted, as transformers does.
    n_TD = torch.empty_like(x_TD)
    for part in _parts(x_TD):
        n_TD[part] = x_TD[part].to(rstd_T1.dtype).mul_(rstd_T1[part])
        n_TD[part].mul_(weight_D)
    return n_TD


def _rstd(x_TD: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x²) + ε), (T, 1), in float32 at least."""
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    length_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True, dtype=wide)
    return length_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(
    grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor, *, wants_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, in the place of `grad_TD`, and of the norm's weight.

    With u = grad · w:  dx = rstd · u - x · rstd³ · mean(u · x).
    """
    grad_weight = None
    if wants_weight:
        grad_weight = (grad_TD * (x_TD * rstd_T1)).sum(0).to(weight_D.dtype)
    for part in _parts(x_TD):
        grad, rstd = grad_TD[part], rstd_T1[part]
        u, wide = grad.mul_(weight_D).to(rstd.dtype), x_TD[part].to(rstd.dtype)
        mean = torch.linalg.vecdot(u, wide).unsqueeze(-1).div_(-x_TD.shape[-1])
        mean.mul_(rstd).mul_(rstd).mul_(rstd)
        grad.copy_(u.mul_(rstd).addcmul_(wide, mean))
    return grad_TD, grad_weight


class _NormedGroup(torch.autograd.Function):
    """`normed_group`; keeps x, 1 / sqrt(mean(x²) + ε) and h."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        scales: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        group = _Group(scales, tensors)
        rstd_T1 = _rstd(x_TD, eps)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        h_TR = group.low(n_TD)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, h_TR, *tensors)
        ctx.scales = scales
        return tuple(group.forward(n_TD, h_TR, i, None) for i in range(len(scales)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, h_TR, *tensors = ctx.saved_tensors
        group = _Group(ctx.scales, tensors)
        needs = ctx.needs_input_grad
        grad_h_TR = group.gradient_h(grads)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        of_tensors = group.gradients(grads, n_TD, h_TR, grad_h_TR, needs[4:])
        del n_TD
        grad_x = grad_norm = None
        # The first block's input comes from the frozen embedding: nobody asks for its gradient.
        if needs[0] or needs[1]:
            grad_x, grad_norm = _norm_backward(
                group.gradient_input(grads, grad_h_TR),
                x_TD,
                norm_D,
                rstd_T1,
                wants_weight=needs[1],
            )
        return grad_x, grad_norm, None, None, *of_tensors


class _ResidualLinear(torch.autograd.Function):
    """`residual_linear`; keeps o and h."""

    @staticmethod
    def forward(
        ctx: Any, x_TO: Tensor, o_TI: Tensor, scales: tuple[float, ...], *tensors: Tensor | None
    ) -> Tensor:
        group = _Group(scales, tensors)
        h_TR = group.low(o_TI)
        ctx.save_for_backward(o_TI, h_TR, *tensors)
        ctx.scales = scales
        return group.forward(o_TI, h_TR, 0, x_TO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        o_TI, h_TR, *tensors = ctx.saved_tensors
        group = _Group(ctx.scales, tensors)
        needs = ctx.needs_input_grad
        grad_h_TR = group.gradient_h([grad_TO])
        of_tensors = group.gradients([grad_TO], o_TI, h_TR, grad_h_TR, needs[3:])
        grad_o = group.gradient_input([grad_TO], grad_h_TR) if needs[1] else None
        return (grad_TO if needs[0] else None), grad_o, None, *of_tensors


class _GatedMLP(torch.autograd.Function):
    """`gated_mlp`; keeps x, 1 / sqrt(mean(x²) + ε), g, u and the h of both inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        scales: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        ins, out = _Group(scales[:2], tensors[:8]), _Group(scales[2:], tensors[8:])
        rstd_T1 = _rstd(x_TD, eps)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        h_TR = ins.low(n_TD)
        g_TM, u_TM = (ins.forward(n_TD, h_TR, i, None) for i in (0, 1))
        del n_TD
        act_TM = torch.empty_like(g_TM)
        for part in _parts(g_TM):
            torch.mul(F.silu(g_TM[part]), u_TM[part], out=act_TM[part])
        h_out_TR = out.low(act_TM)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, h_TR, g_TM, u_TM, h_out_TR, *tensors)
        ctx.scales = scales
        return out.forward(act_TM, h_out_TR, 0, x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, h_TR, g_TM, u_TM, h_out_TR, *tensors = ctx.saved_tensors
        ins, out = _Group(ctx.scales[:2], tensors[:8]), _Group(ctx.scales[2:], tensors[8:])
        needs = ctx.needs_input_grad
        grad_h_out_TR = out.gradient_h([grad_TD])
        # d(silu(g) u): of u it is silu(g)·grad; silu(g)·u itself is needed once more for A and W.
        grad_u_TM = out.gradient_input([grad_TD], grad_h_out_TR)
        act_TM, grad_g_TM = torch.empty_like(g_TM), torch.empty_like(g_TM)
        for part in _parts(g_TM):
            g, u, grad = g_TM[part], u_TM[part], grad_u_TM[part]
            silu = F.silu(g)
            torch.mul(silu, u, out=act_TM[part])
            torch.ops.aten.silu_backward.grad_input(grad * u, g, grad_input=grad_g_TM[part])
            grad.mul_(silu)
        of_out = out.gradients([grad_TD], act_TM, h_out_TR, grad_h_out_TR, needs[12:])
        del act_TM
        grads = [grad_g_TM, grad_u_TM]
        grad_h_TR = ins.gradient_h(grads)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        of_ins = ins.gradients(grads, n_TD, h_TR, grad_h_TR, needs[4:12])
        del n_TD
        grad_x = grad_norm = None
        if needs[0] or needs[1]:
            grad_x, grad_norm = _norm_backward(
                ins.gradient_input(grads, grad_h_TR), x_TD, norm_D, rstd_T1, wants_weight=needs[1]
            )
            grad_x.add_(grad_TD)
        return grad_x, grad_norm, None, None, *of_ins, *of_out


def _parts(x_TM: Tensor) -> list[slice]:
    """Row slices that stay in a cache on a CPU; all rows at once elsewhere."""
    rows = _ROWS if x_TM.device.type == "cpu" else x_TM.shape[0]
    return [slice(i, i + rows) for i in range(0, x_TM.shape[0], rows)]
