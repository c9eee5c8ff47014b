"""The hot path of a whole transformer block: what stands between two attentions, written out.

    q, k, v = L_q(n), L_k(n), L_v(n)          n = norm(x)                   `normed_group`
    x'      = x + L_o(o)                                                    `residual_linear`
    x''     = x' + L_d(silu(L_g(n)) * L_u(n)) n = norm(x')                  `gated_mlp`

where L(n) = W n + b + s·B (A n) wherever a pair is attached, W n + b where none is, and
norm(x) = w · x / sqrt(mean(x²) + ε) (RMSNorm, arXiv 1910.07467); silu(g) * u is SwiGLU
(arXiv 2002.05202). A pair may be for some of the rows alone: then many jobs, each with rows and
pairs of its own, share the products with W (lora/jobs.py).

What is saved over the same formulas under autograd: linears that share an input share one product
with all their A's (24 columns in place of three times 8) and one gradient of that input; the
residual is added inside the matmul; n and silu(g)·u, which are cheap, are computed again in the
backward instead of kept: of a block's T × (6 D + 3 M + …) elements, T × (2 D + M) fewer stay in
memory (D width, M intermediate width), and another T × (2 D + M) that autograd would keep inside
the norms and the activation. Weights take gradients where they want one: full fine-tuning runs
through the same functions.

The oracle is `equations.forward` and autograd through the formulas above; the tests compare both.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.gpu import dispatch
from lorakit.kernels.groups import GroupLayout, Linear, LinearGroup, flat, size_of

# Rows of an element-wise chain taken at once: what lies between its passes stays in a cache.
_ROWS = 256


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
    layout, tensors = flat(linears)
    return _NormedGroup.apply(x_TD, norm_D, eps, layout, *tensors)


def residual_linear(x_TO: Tensor | None, o_TI: Tensor, linear: Linear) -> Tensor:
    """x + L(o), or L(o) alone where x is None: (T, out_features).

    What autograd would do with `equations.forward` costs passes over memory that nobody needs: an
    extra (T, out) tensor for s·B(Ax), another for the sum, the same again in the backward, and a
    gradient for the frozen W. Here the base's product is accumulated into the low-rank one, the
    only activations kept are o and h = A o (T × rank), and a frozen W gets no gradient. A and B
    are cast to o's dtype once a call, and the scale is folded into B.
    """
    layout, tensors = flat([linear])
    return _ResidualLinear.apply(x_TO, o_TI, layout, *tensors)


def linear(x: Tensor, of: Linear) -> Tensor:
    """L(x) with its pairs, (…, in_features) -> (…, out_features): `residual_linear` on all rows."""
    rows = x.reshape(-1, x.shape[-1])
    return residual_linear(None, rows, of).view(*x.shape[:-1], of.frozen.shape[0])


def gated_mlp(
    x_TD: Tensor, norm_D: Tensor, eps: float, gate: Linear, up: Linear, down: Linear
) -> Tensor:
    """x + L_down(silu(L_gate(n)) * L_up(n)) with n = norm(x): (T, D)."""
    layout, tensors = flat([gate, up, down])
    return _GatedMLP.apply(x_TD, norm_D, eps, layout, *tensors)


def _normed(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """norm(x), and 1 / sqrt(mean(x²) + ε)."""
    rstd_T1 = _rstd(x_TD, eps)
    return _norm(x_TD, weight_D, rstd_T1), rstd_T1


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


def _norm_gradients(
    grad_TD: Tensor,
    x_TD: Tensor,
    weight_D: Tensor,
    rstd_T1: Tensor,
    onto_TD: Tensor | None,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, in the place of `grad_TD` and with `onto` added, and of the norm's weight.

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
    if onto_TD is not None:
        grad_TD.add_(onto_TD)
    return grad_TD, grad_weight


def _gated(g_TM: Tensor, u_TM: Tensor) -> Tensor:
    """silu(g)·u."""
    act_TM = torch.empty_like(g_TM)
    for part in _parts(g_TM):
        torch.mul(F.silu(g_TM[part]), u_TM[part], out=act_TM[part])
    return act_TM


def _gated_gradients(grad_TM: Tensor, g_TM: Tensor, u_TM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(g)·u, which is needed once more for A and W, the gradient of g, and that of u, in the
    place of `grad_TM`: silu(g)·grad."""
    act_TM, grad_g_TM = torch.empty_like(g_TM), torch.empty_like(g_TM)
    for part in _parts(g_TM):
        g, u, grad = g_TM[part], u_TM[part], grad_TM[part]
        silu = F.silu(g)
        torch.mul(silu, u, out=act_TM[part])
        torch.ops.aten.silu_backward.grad_input(grad * u, g, grad_input=grad_g_TM[part])
        grad.mul_(silu)
    return act_TM, grad_g_TM, grad_TM


class _NormedGroup(torch.autograd.Function):
    """`normed_group`; keeps x, 1 / sqrt(mean(x²) + ε) and h."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        layout: GroupLayout,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        group = LinearGroup(layout, tensors)
        n_TD, rstd_T1 = dispatch.run("normed", _normed, x_TD, norm_D, eps)
        hs = group.low(n_TD)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, *tensors, *hs)
        ctx.layout = layout
        return tuple(group.forward(n_TD, hs, i, None) for i in range(len(layout)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, *rest = ctx.saved_tensors
        count = size_of(ctx.layout)
        group, hs = LinearGroup(ctx.layout, rest[:count]), rest[count:]
        needs = ctx.needs_input_grad
        grad_hs = group.gradient_h(grads)
        n_TD = dispatch.run("norm_again", _norm, x_TD, norm_D, rstd_T1)
        of_tensors = group.gradients(grads, n_TD, hs, grad_hs, needs[4:])
        del n_TD
        grad_x = grad_norm = None
        # The first block's input comes from the frozen embedding: nobody asks for its gradient.
        if needs[0] or needs[1]:
            grad_n_TD = group.gradient_input(grads, grad_hs)
            grad_x, grad_norm = dispatch.run(
                "norm_gradients", _norm_gradients, grad_n_TD, x_TD, norm_D, rstd_T1, None, needs[1]
            )
        return grad_x, grad_norm, None, None, *of_tensors


class _ResidualLinear(torch.autograd.Function):
    """`residual_linear`; keeps o and h."""

    @staticmethod
    def forward(
        ctx: Any, x_TO: Tensor | None, o_TI: Tensor, layout: GroupLayout, *tensors: Tensor | None
    ) -> Tensor:
        group = LinearGroup(layout, tensors)
        hs = group.low(o_TI)
        ctx.save_for_backward(o_TI, *tensors, *hs)
        ctx.layout = layout
        return group.forward(o_TI, hs, 0, x_TO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        o_TI, *rest = ctx.saved_tensors
        count = size_of(ctx.layout)
        group, hs = LinearGroup(ctx.layout, rest[:count]), rest[count:]
        needs = ctx.needs_input_grad
        grad_hs = group.gradient_h([grad_TO])
        of_tensors = group.gradients([grad_TO], o_TI, hs, grad_hs, needs[3:])
        grad_o = group.gradient_input([grad_TO], grad_hs) if needs[1] else None
        return (grad_TO if needs[0] else None), grad_o, None, *of_tensors


class _GatedMLP(torch.autograd.Function):
    """`gated_mlp`; keeps x, 1 / sqrt(mean(x²) + ε), g, u and the h of both inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        layout: GroupLayout,
        *tensors: Tensor | None,
    ) -> Tensor:
        count = size_of(layout[:2])
        ins, out = (
            LinearGroup(layout[:2], tensors[:count]),
            LinearGroup(layout[2:], tensors[count:]),
        )
        n_TD, rstd_T1 = dispatch.run("normed", _normed, x_TD, norm_D, eps)
        hs = ins.low(n_TD)
        g_TM, u_TM = (ins.forward(n_TD, hs, i, None) for i in (0, 1))
        del n_TD
        act_TM = dispatch.run("gated", _gated, g_TM, u_TM)
        hs_out = out.low(act_TM)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, g_TM, u_TM, *tensors, *hs, *hs_out)
        ctx.layout = layout
        return out.forward(act_TM, hs_out, 0, x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, g_TM, u_TM, *rest = ctx.saved_tensors
        count, every = size_of(ctx.layout[:2]), size_of(ctx.layout)
        ins, out = (
            LinearGroup(ctx.layout[:2], rest[:count]),
            LinearGroup(ctx.layout[2:], rest[count:every]),
        )
        hs, hs_out = rest[every : every + len(ins.parts)], rest[every + len(ins.parts) :]
        needs = ctx.needs_input_grad
        grad_hs_out = out.gradient_h([grad_TD])
        grad_act_TM = out.gradient_input([grad_TD], grad_hs_out)
        act_TM, grad_g_TM, grad_u_TM = dispatch.run(
            "gated_gradients", _gated_gradients, grad_act_TM, g_TM, u_TM
        )
        of_out = out.gradients([grad_TD], act_TM, hs_out, grad_hs_out, needs[4 + count :])
        del act_TM
        grads = [grad_g_TM, grad_u_TM]
        grad_hs = ins.gradient_h(grads)
        n_TD = dispatch.run("norm_again", _norm, x_TD, norm_D, rstd_T1)
        of_ins = ins.gradients(grads, n_TD, hs, grad_hs, needs[4 : 4 + count])
        del n_TD
        grad_x = grad_norm = None
        if needs[0] or needs[1]:
            grad_n_TD = ins.gradient_input(grads, grad_hs)
            grad_x, grad_norm = dispatch.run(
                *("norm_gradients", _norm_gradients, grad_n_TD, x_TD, norm_D, rstd_T1),
                *(grad_TD, needs[1]),
            )
        return grad_x, grad_norm, None, None, *of_ins, *of_out


def _parts(x_TM: Tensor) -> list[slice]:
    """Row slices that stay in a cache on a CPU; all rows at once elsewhere."""
    rows = _ROWS if x_TM.device.type == "cpu" else x_TM.shape[0]
    return [slice(i, i + rows) for i in range(0, x_TM.shape[0], rows)]
