"""The hot path of a whole transformer block: what stands between two attentions, written out.

    q, k, v = L_q(n), L_k(n), L_v(n)          n = norm(x)                   `normed_group`
    x'      = x + L_o(o)                                                    `residual_linear`
    x''     = x' + L_d(silu(L_g(n)) * L_u(n)) n = norm(x')                  `gated_mlp`

where L(n) = W n + b + s·B (A n) wherever a pair is attached, W n + b where none is, and
norm(x) = w · x / sqrt(mean(x²) + ε) (RMSNorm, arXiv 1910.07467); silu(g) * u is SwiGLU
(arXiv 2002.05202). A pair may be for some of the rows alone: then many jobs, each with rows and
pairs of its own, share the products with W (together.py).

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
class Pair:
    """A pair, and the rows that it works on.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank).
        scale: s.
        rows: first and one past the last of the T rows; None for all of them.
    """

    A: Tensor
    B: Tensor
    scale: float
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Linear:
    """The tensors of one linear layer, with or without pairs.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        pairs: one for all rows, or several for rows that do not overlap.
    """

    weight: Tensor
    bias: Tensor | None = None
    pairs: tuple[Pair, ...] = ()


# Of each linear, scale and rows of each of its pairs: what is no tensor of a `Linear`.
_Layout = tuple[tuple[tuple[float, tuple[int, int] | None], ...], ...]


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
    layout, tensors = _flat(linears)
    return _NormedGroup.apply(x_TD, norm_D, eps, layout, *tensors)


def residual_linear(x_TO: Tensor | None, o_TI: Tensor, linear: Linear) -> Tensor:
    """x + L(o), or L(o) alone: (T, out_features)."""
    layout, tensors = _flat([linear])
    return _ResidualLinear.apply(x_TO, o_TI, layout, *tensors)


def gated_mlp(
    x_TD: Tensor, norm_D: Tensor, eps: float, gate: Linear, up: Linear, down: Linear
) -> Tensor:
    """x + L_down(silu(L_gate(n)) * L_up(n)) with n = norm(x): (T, D)."""
    layout, tensors = _flat([gate, up, down])
    return _GatedMLP.apply(x_TD, norm_D, eps, layout, *tensors)


def _flat(linears: Sequence[Linear]) -> tuple[_Layout, list[Tensor | None]]:
    """The layout, and the tensors one after another, as autograd wants them.

    Of each linear: weight, bias, and A and B of each pair.
    """
    tensors: list[Tensor | None] = []
    for each in linears:
        tensors += [each.weight, each.bias]
        tensors += [tensor for pair in each.pairs for tensor in (pair.A, pair.B)]
    return tuple(tuple((p.scale, p.rows) for p in each.pairs) for each in linears), tensors


def _size(layout: _Layout) -> int:
    """How many tensors `_flat` gives for linears of this layout."""
    return sum(2 + 2 * len(pairs) for pairs in layout)


class _Part:
    """The pairs that read the same rows of a group's input: those of one adapter.

    Attributes:
        rows: of the T rows.
        pairs: by the place of their linear in the group.
        columns: of h that belong to each.
    """

    def __init__(self, rows: tuple[int, int] | None, pairs: dict[int, Pair]) -> None:
        self.rows = slice(None) if rows is None else slice(*rows)
        self.pairs = pairs
        self.columns: dict[int, slice] = {}
        start = 0
        for i, pair in pairs.items():
            self.columns[i] = slice(start, start + pair.A.shape[0])
            start += pair.A.shape[0]

    def A(self, like: Tensor) -> Tensor:
        """All A's under one another, (R, in_features), in the dtype of the activations."""
        return torch.cat([pair.A for pair in self.pairs.values()]).to(like.dtype)


class _Group:
    """Linears that share an input n: (T, in_features); forward and backward as plain functions.

    h is one tensor a part: (rows of the part, sum of its ranks).
    """

    def __init__(self, layout: _Layout, tensors: Sequence[Tensor | None]) -> None:
        rest: Any = iter(tensors)
        self.linears = [
            Linear(next(rest), next(rest), tuple(Pair(next(rest), next(rest), *p) for p in pairs))
            for pairs in layout
        ]
        found: dict[tuple[int, int] | None, dict[int, Pair]] = {}
        for i, each in enumerate(self.linears):
            for pair in each.pairs:
                found.setdefault(pair.rows, {})[i] = pair
        self.parts = [_Part(rows, pairs) for rows, pairs in found.items()]
        self._place = {rows: place for place, rows in enumerate(found)}

    def low(self, n_TI: Tensor) -> list[Tensor]:
        """h = n Aᵀ for all pairs of a part together."""
        return [n_TI[part.rows] @ part.A(n_TI).t() for part in self.parts]

    def forward(self, n_TI: Tensor, hs: Sequence[Tensor], i: int, onto: Tensor | None) -> Tensor:
        """L_i(n), or onto + L_i(n): (T, out_i).

        The low-rank product comes first and the base's is added to it in the matmul. In 16 bits it
        would be lost the other way round: what is less than half a unit in the last place of a
        number that is rounded already changes nothing, and of the residual stream, whose numbers
        are large, that is nearly all of it.
        """
        each = self.linears[i]
        here = [(part, h) for part, h in zip(self.parts, hs, strict=True) if i in part.pairs]
        if not here:
            y_TO = product(n_TI, each.weight.t(), onto)
        else:
            before = onto if n_TI.dtype in (torch.float32, torch.float64) else None
            size = (n_TI.shape[0], each.weight.shape[0])
            y_TO = n_TI.new_zeros(size) if before is None else before.clone()
            for part, h_TR in here:
                B = _scaled(part.pairs[i], n_TI)
                y_TO[part.rows].addmm_(h_TR[:, part.columns[i]], B.t())
            add_product(y_TO, n_TI, each.weight.t())
            if before is None and onto is not None:
                y_TO.add_(onto)
        if each.bias is not None:
            y_TO.add_(each.bias)
        return y_TO

    def gradient_h(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradient of each h."""
        found = []
        for part in self.parts:
            pieces = [
                grads[i][part.rows] @ _scaled(pair, grads[i], rows_of_rank=True).t()
                for i, pair in part.pairs.items()
            ]
            found.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1))
        return found

    def gradient_input(self, grads: Sequence[Tensor], grad_hs: Sequence[Tensor]) -> Tensor:
        """Σ_i grad_i W_i + grad_h A: (T, in_features), accumulated in one buffer."""
        if not self.parts:
            grad_TI = product(grads[0], self.linears[0].weight)
        else:  # the low-rank products first, as in the forward
            grad_TI = grads[0].new_zeros(grads[0].shape[0], self.linears[0].weight.shape[1])
            for part, grad_h_TR in zip(self.parts, grad_hs, strict=True):
                grad_TI[part.rows].addmm_(grad_h_TR, part.A(grad_TI))
            add_product(grad_TI, grads[0], self.linears[0].weight)
        for each, grad_TO in zip(self.linears[1:], grads[1:], strict=True):
            add_product(grad_TI, grad_TO, each.weight)
        return grad_TI

    def gradients(
        self,
        grads: Sequence[Tensor],
        n_TI: Tensor,
        hs: Sequence[Tensor],
        grad_hs: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients in the order of `_flat`, None where nobody wants one."""
        wanted = iter(needs)
        grads_A: dict[int, Tensor] = {}
        out: list[Tensor | None] = []
        for i, (each, grad_TO) in enumerate(zip(self.linears, grads, strict=True)):
            out.append(grad_TO.t() @ n_TI if next(wanted) else None)
            out.append(grad_TO.sum(0) if next(wanted) else None)
            for pair in each.pairs:
                place = self._place[pair.rows]
                part = self.parts[place]
                grad_A = grad_B = None
                if next(wanted):
                    if place not in grads_A:  # of all linears of the part at once
                        grads_A[place] = grad_hs[place].t() @ n_TI[part.rows]
                    grad_A = grads_A[place][part.columns[i]].to(pair.A.dtype)
                if next(wanted):
                    h_TR = hs[place][:, part.columns[i]]
                    grad_B = (h_TR.t() @ grad_TO[part.rows]).t().to(pair.B.dtype).mul(pair.scale)
                out += [grad_A, grad_B]
        return out


def _scaled(pair: Pair, like: Tensor, *, rows_of_rank: bool = False) -> Tensor:
    """s·B in the dtype of the activations, (out, R), or laid out as (R, out): see fused.py."""
    scaled = (pair.scale * pair.B).to(like.dtype)
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
        layout: _Layout,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        group = _Group(layout, tensors)
        rstd_T1 = _rstd(x_TD, eps)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        hs = group.low(n_TD)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, *tensors, *hs)
        ctx.layout = layout
        return tuple(group.forward(n_TD, hs, i, None) for i in range(len(layout)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, *rest = ctx.saved_tensors
        count = _size(ctx.layout)
        group, hs = _Group(ctx.layout, rest[:count]), rest[count:]
        needs = ctx.needs_input_grad
        grad_hs = group.gradient_h(grads)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        of_tensors = group.gradients(grads, n_TD, hs, grad_hs, needs[4:])
        del n_TD
        grad_x = grad_norm = None
        # The first block's input comes from the frozen embedding: nobody asks for its gradient.
        if needs[0] or needs[1]:
            grad_x, grad_norm = _norm_backward(
                group.gradient_input(grads, grad_hs),
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
        ctx: Any, x_TO: Tensor | None, o_TI: Tensor, layout: _Layout, *tensors: Tensor | None
    ) -> Tensor:
        group = _Group(layout, tensors)
        hs = group.low(o_TI)
        ctx.save_for_backward(o_TI, *tensors, *hs)
        ctx.layout = layout
        return group.forward(o_TI, hs, 0, x_TO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        o_TI, *rest = ctx.saved_tensors
        count = _size(ctx.layout)
        group, hs = _Group(ctx.layout, rest[:count]), rest[count:]
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
        layout: _Layout,
        *tensors: Tensor | None,
    ) -> Tensor:
        count = _size(layout[:2])
        ins, out = _Group(layout[:2], tensors[:count]), _Group(layout[2:], tensors[count:])
        rstd_T1 = _rstd(x_TD, eps)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        hs = ins.low(n_TD)
        g_TM, u_TM = (ins.forward(n_TD, hs, i, None) for i in (0, 1))
        del n_TD
        act_TM = torch.empty_like(g_TM)
        for part in _parts(g_TM):
            torch.mul(F.silu(g_TM[part]), u_TM[part], out=act_TM[part])
        hs_out = out.low(act_TM)
        ctx.save_for_backward(x_TD, norm_D, rstd_T1, g_TM, u_TM, *tensors, *hs, *hs_out)
        ctx.layout = layout
        return out.forward(act_TM, hs_out, 0, x_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, rstd_T1, g_TM, u_TM, *rest = ctx.saved_tensors
        count, every = _size(ctx.layout[:2]), _size(ctx.layout)
        ins, out = _Group(ctx.layout[:2], rest[:count]), _Group(ctx.layout[2:], rest[count:every])
        hs, hs_out = rest[every : every + len(ins.parts)], rest[every + len(ins.parts) :]
        needs = ctx.needs_input_grad
        grad_hs_out = out.gradient_h([grad_TD])
        # d(silu(g) u): of u it is silu(g)·grad; silu(g)·u itself is needed once more for A and W.
        grad_u_TM = out.gradient_input([grad_TD], grad_hs_out)
        act_TM, grad_g_TM = torch.empty_like(g_TM), torch.empty_like(g_TM)
        for part in _parts(g_TM):
            g, u, grad = g_TM[part], u_TM[part], grad_u_TM[part]
            silu = F.silu(g)
            torch.mul(silu, u, out=act_TM[part])
            torch.ops.aten.silu_backward.grad_input(grad * u, g, grad_input=grad_g_TM[part])
            grad.mul_(silu)
        of_out = out.gradients([grad_TD], act_TM, hs_out, grad_hs_out, needs[4 + count :])
        del act_TM
        grads = [grad_g_TM, grad_u_TM]
        grad_hs = ins.gradient_h(grads)
        n_TD = _norm(x_TD, norm_D, rstd_T1)
        of_ins = ins.gradients(grads, n_TD, hs, grad_hs, needs[4 : 4 + count])
        del n_TD
        grad_x = grad_norm = None
        if needs[0] or needs[1]:
            grad_x, grad_norm = _norm_backward(
                ins.gradient_input(grads, grad_hs), x_TD, norm_D, rstd_T1, wants_weight=needs[1]
            )
            grad_x.add_(grad_TD)
        return grad_x, grad_norm, None, None, *of_ins, *of_out


def _parts(x_TM: Tensor) -> list[slice]:
    """Row slices that stay in a cache on a CPU; all rows at once elsewhere."""
    rows = _ROWS if x_TM.device.type == "cpu" else x_TM.shape[0]
    return [slice(i, i + rows) for i in range(0, x_TM.shape[0], rows)]
