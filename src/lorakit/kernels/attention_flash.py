"""Causal attention in 16 bits on a CPU: torch's flash forward, and a backward of plain matmuls.

The forward keeps L = log Σ_j exp(s·q k_jᵀ) of each query (arXiv 2205.14135), so that the backward
has P without a softmax, and may form it the other way round, keys in the rows::

    Pᵀ = exp(r (K (2ᵉ·Q)ᵀ - L/r)),   dSᵀ = Pᵀ * (V dOᵀ - δ),   δ = rowsum(dO * O),   s = 2ᵉ r
    dV = Pᵀ dO,   dK = s·dSᵀ Q,   dQ = s·(dSᵀ)ᵀ K

- L/r and - δ are columns of the matmuls: [K, 1, 1] [2ᵉ·Q, -L₁, -L₂]ᵀ, where L₁ is L/r in 16 bits and
L₂ what that leaves out. Q is multiplied by a power of two alone, which 16 bits hold exactly: rounded, scores of
some hundreds would leave L by so much that their exp is anything. r is 1 where heads are 16, 64 or 256 wide. So two passes over Pᵀ and dSᵀ each remain (the matmul, and exp or the
product), where scores in rows take five and their matmuls run at two thirds of the rate. docs/performance.md, "Attention", has
what that saves.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.head_groups import back, maps, split, take
from lorakit.kernels.layout import PaddedGroup

# Underscored, but the operator that F.scaled_dot_product_attention runs on a CPU, and the only
# one that hands out L; found missing, attention goes to attention_blocked.py.
_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def suits(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this kernel is for heads of this dtype and place; values must be as wide as keys."""
    return _forward is not None and device.type == "cpu" and dtype == torch.bfloat16


class Flash(torch.autograd.Function):
    """``Flash.apply(q_THD, k_TKD, v_TKD, groups, scale) -> out_THD``; shapes as in blocked.py."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        groups: tuple[PaddedGroup, ...],
        scale: float,
    ) -> Tensor:
        by_query, by_key = maps(q_THD, k_TKD, groups)
        q, k, v = take(q_THD, by_query), take(k_TKD, by_key), take(v_TKD, by_key)
        o = torch.empty_like(q)
        logs: list[Tensor] = []
        for group, (q_g, o_g), (k_g, v_g) in split(groups, (q, o), (k, v), k_TKD.shape[1]):
            count, length, width = group.count, group.length, q.shape[1]
            assert _forward is not None
            out, log = _forward(
                q_g.view(count, -1, length, width),
                k_g.view(count, -1, length, width),
                v_g.view(count, -1, length, width),
                is_causal=True,
                scale=scale,
            )
            o_g.copy_(out.reshape(o_g.shape))
            logs.append(log.reshape(o_g.shape[:3]))
        out_THD = back(o, by_query, q_THD)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, *logs)
        ctx.settings = groups, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        q_THD, k_TKD, v_TKD, out_THD, *logs = ctx.saved_tensors
        groups, scale = ctx.settings
        by_query, by_key = maps(q_THD, k_TKD, groups)
        wide_TH1 = (grad_THD * out_THD).sum(-1, keepdim=True, dtype=torch.float32)
        do = _with_two_parts(take(grad_THD, by_query), take(wide_TH1, by_query))
        # Padding repeats real rows; its outputs were never used, so it hands no gradient on.
        do.index_fill_(0, by_query.padding, 0.0)
        log = torch.cat([each.flatten() for each in logs])[:, None]
        rest, exponent = _parts(scale)
        q = _with_two_parts(take(q_THD * 2.0**exponent, by_query), log / rest)
        k, v = _with_ones(take(k_TKD, by_key)), _with_ones(take(v_TKD, by_key))
        width = q_THD.shape[2]
        dq = q.new_empty(len(q), width)
        dk, dv = k.new_zeros(len(k), width), v.new_zeros(len(v), width)
        for _, (q_g, do_g, dq_g), (k_g, v_g, dk_g, dv_g) in split(
            groups, (q, do, dq), (k, v, dk, dv), k_TKD.shape[1]
        ):
            _group_backward(q_g, k_g, v_g, do_g, dq_g, dk_g, dv_g, rest)
        return (
            back(dq.mul_(scale), by_query, q_THD),
            back(dk if rest == 1 else dk.mul_(rest), by_key, k_TKD),
            back(dv, by_key, v_TKD),
            None,
            None,
        )


def _group_backward(
    q_NGME: Tensor,
    k_NME: Tensor,
    v_NME: Tensor,
    do_NGME: Tensor,
    dq_NGMD: Tensor,
    dk_NMD: Tensor,
    dv_NMD: Tensor,
    rest: float,
) -> None:
    """dQ / s, dK / r and dV of one group, written into the last three; E = D + 2 (module docstring)."""
    n, shared, length, width = dq_NGMD.shape
    rows = min(length, _block(length))
    # Two buffers for all blocks: fresh memory costs more than what is done in it.
    p_all, ds_all = (q_NGME.new_empty(n * length * shared * rows) for _ in range(2))
    for i0 in range(0, length, rows):
        i1 = min(i0 + rows, length)
        columns = shared * (i1 - i0)
        q_b, do_b = (x[:, :, i0:i1].reshape(n, columns, width + 2) for x in (q_NGME, do_NGME))
        p, ds = (x[: n * i1 * columns].view(n, i1, columns) for x in (p_all, ds_all))
        torch.bmm(k_NME[:, :i1], q_b.transpose(1, 2), out=p)
        # Of the keys up to the block's last row only the last square has any to hide.
        p[:, i0:].view(n, i1 - i0, shared, i1 - i0).masked_fill_(_hidden(i1 - i0), -torch.inf)
        (p if rest == 1 else p.mul_(rest)).exp_()
        torch.bmm(v_NME[:, :i1], do_b.transpose(1, 2), out=ds)
        ds.mul_(p)
        dv_NMD[:, :i1].baddbmm_(p, do_b[..., :width])
        dk_NMD[:, :i1].baddbmm_(ds, q_b[..., :width])
        dq = torch.bmm(ds.transpose(1, 2), k_NME[:, :i1, :width])
        dq_NGMD[:, :, i0:i1] = dq.view(n, shared, i1 - i0, width)


def _parts(scale: float) -> tuple[float, int]:
    """The scale as r · 2ᵉ, with 1 ≤ r < 2.

    >>> _parts(0.125), _parts(0.375)
    ((1.0, -3), (1.5, -2))
    """
    part, exponent = math.frexp(scale)
    return 2 * part, exponent - 1


def _block(length: int) -> int:
    """Query rows of a block: all of a short group, then few, so that little is masked."""
    if length <= 128:
        return length
    return 64 if length <= 256 else 128


def _hidden(rows: int) -> Tensor:
    """Which keys of a square are after their query: (keys, 1, queries)."""
    return torch.ones(rows, rows, dtype=torch.bool).tril_(-1)[:, None]


def _with_two_parts(x: Tensor, wide: Tensor) -> Tensor:
    """[x, -w₁, -w₂] with w₁ + w₂ = w, of float32, in the 16 bits of x."""
    first = wide.to(x.dtype)
    return torch.cat([x, first.neg(), (first - wide).to(x.dtype)], dim=1)


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 2)], dim=1)
