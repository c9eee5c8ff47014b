"""Causal attention by blocks of query rows, with its backward written out: the CPU's kernel.

With S = s·QKᵀ + mask, P = softmax(S), O = P V (arXiv 2205.14135, appendix B.2)::

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P * (dP - rowsum(dO * O)),
    dQ = s·dS K,  dK = s·dSᵀ Q

Plain batched matmuls and one pass of softmax. Keys beyond a block's last row and before its
window or chunk are not multiplied; sliding windows and soft caps, which torch's kernel does not know,
are here. Values may be of another width than keys (multi-head latent attention, arXiv 2405.04434).

A sink a_h of each head (gpt-oss, arXiv 2508.10925) takes part in the softmax and has no value::

    P_ij = exp(S_ij) / (exp(a_h) + Σ_j exp(S_ij)) = softmax(S)_ij · sigmoid(L_i - a_h)

with L_i = log Σ_j exp(S_ij). The gradients above stay as they are: what P's rows lack of 1 belongs to a
value of zero, so rowsum(dO * O) = Σ_j P_ij dP_ij still holds.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.head_groups import back, maps, split, take
from lorakit.kernels.layout import PaddedGroup

BLOCK, WIDE_BLOCK = 64, 128
"""Query rows of a block: larger ones multiply more masked entries, smaller ones more often; from
512 tokens on the wide one is faster."""
FEW = 8
"""Up to this many large products are taken one by one, each with all threads: as one batch, three
heads on two threads leave one idle for a third of the time (AVX2, 384 × 2,048 × 64: 72 to 100
GFLOP/s as a batch, 95 to 124 one by one)."""
KEEP = 128
"""Groups up to this many tokens keep P for the backward; beyond, it is computed again: P then
outgrows Q, K, V and O together, and computing it costs a quarter more of the attention's time."""


@dataclass(frozen=True, eq=False)
class ScoreTerms:
    """How scores become probabilities, beside the products of queries and keys.

    Attributes:
        scale: the s of the formula.
        window: a token sees itself and the window - 1 tokens before it; None: all before it.
        chunk: a token sees those of its own chunk of so many tokens; None: no chunks.
        softcap: scores become c·tanh(score / c) before the mask; None: they do not.
        sinks: (H,) one more logit of each head, without gradient; None for none.
        bias: of each group what is added to its scores, (n or 1, H or 1, M, M), without gradient,
            -inf where a token does not see another; it says all there is about who sees whom.
            None: causal, with window and chunk.
    """

    scale: float
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Mapping[PaddedGroup, Tensor] | None = None

    def keeps(self, length: int) -> bool:
        """Whether P of a group of this length is kept for the backward."""
        return length <= KEEP and self.softcap is None


class Blocked(torch.autograd.Function):
    """``Blocked.apply(q_THD, k_TKD, v_TKE, groups, scores) -> out_THE``.

    Tokens that are in none of the groups get zeros. Inside, a group's queries are (n·K, G, M, D),
    its keys (n·K, M, D) and its values (n·K, M, E): one matmul serves the G query heads of a key head.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        groups: tuple[PaddedGroup, ...],
        scores: ScoreTerms,
    ) -> Tensor:
        by_query, by_key = maps(q_THD, k_TKD, groups)
        q, k, v = take(q_THD, by_query), take(k_TKD, by_key), take(v_TKD, by_key)
        o = q.new_empty(len(q), v.shape[1])
        kept: list[Tensor] = []
        for group, (q_g, o_g), (k_g, v_g) in split(groups, (q, o), (k, v), k_TKD.shape[1]):
            for block in _blocks(group.length, scores):
                p, _ = _probabilities(block.of(q_g) * scores.scale, k_g, block, scores, group)
                block.put(o_g, _products(p, v_g[:, block.keys]))
                if scores.keeps(group.length):
                    kept.append(p)
        out_THD = back(o, by_query, q_THD)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, *kept)
        ctx.settings = groups, scores
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        q_THD, k_TKD, v_TKD, out_THD, *kept = ctx.saved_tensors
        groups, scores = ctx.settings
        by_query, by_key = maps(q_THD, k_TKD, groups)
        q, k, v = take(q_THD, by_query), take(k_TKD, by_key), take(v_TKD, by_key)
        do = take(grad_THD, by_query)
        delta = take((grad_THD * out_THD).sum(-1, keepdim=True), by_query)
        # Padding repeats real rows; its outputs were never used, so it hands no gradient on.
        do.index_fill_(0, by_query.padding, 0.0)
        delta.index_fill_(0, by_query.padding, 0.0)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        left = iter(kept)
        for group, (q_g, do_g, delta_g, dq_g), (k_g, v_g, dk_g, dv_g) in split(
            groups, (q, do, delta, dq), (k, v, dk, dv), k_TKD.shape[1]
        ):
            for block in _blocks(group.length, scores):
                q_b, do_b, keys = block.of(q_g) * scores.scale, block.of(do_g), block.keys
                slope = None
                if scores.keeps(group.length):
                    p = next(left)
                else:
                    p, slope = _probabilities(q_b, k_g, block, scores, group)
                dv_g[:, keys] += _products(p.transpose(1, 2), do_b)
                ds = _products(do_b, v_g[:, keys].transpose(1, 2))
                ds.sub_(block.of(delta_g)).mul_(p)
                if slope is not None:
                    ds.mul_(slope)
                block.put(dq_g, _products(ds, k_g[:, keys]).mul_(scores.scale))
                dk_g[:, keys] += _products(ds.transpose(1, 2), q_b)
        dq_THD = back(dq, by_query, q_THD)
        dk_TKD, dv_TKD = back(dk, by_key, k_TKD), back(dv, by_key, v_TKD)
        return dq_THD, dk_TKD, dv_TKD, None, None


@dataclass(frozen=True)
class _Block:
    """Query rows [i0, i1) of a group and the keys [j0, i1) that any of them may see."""

    i0: int
    i1: int
    j0: int

    @property
    def keys(self) -> slice:
        return slice(self.j0, self.i1)

    def of(self, x_NGMD: Tensor) -> Tensor:
        """The block's rows as (N, G·b, D), the form that one matmul takes."""
        return x_NGMD[:, :, self.i0 : self.i1].flatten(1, 2)

    def put(self, x_NGMD: Tensor, rows: Tensor) -> None:
        """Write the block's rows, the inverse of `of`."""
        place = x_NGMD[:, :, self.i0 : self.i1]
        place.copy_(rows.view(place.shape))


def _blocks(length: int, scores: ScoreTerms) -> Iterator[_Block]:
    # A last block of a few rows costs as many calls as a full one: spread the rows evenly.
    rows = WIDE_BLOCK if length >= 512 else BLOCK
    size = math.ceil(length / max(1, round(length / rows)))
    for i0 in range(0, length, size):
        first = 0
        if scores.bias is None and scores.window is not None:
            first = max(0, i0 - scores.window + 1)
        if scores.bias is None and scores.chunk is not None:
            first = max(first, i0 // scores.chunk * scores.chunk)
        yield _Block(i0, min(i0 + size, length), first)


def _products(a_NIJ: Tensor, b_NJK: Tensor) -> Tensor:
    """a b for each of N, (N, I, K)."""
    n, rows = a_NIJ.shape[:2]
    if n > FEW or rows * max(a_NIJ.shape[2], b_NJK.shape[2]) < 1 << 17:
        return torch.bmm(a_NIJ, b_NJK)
    out = a_NIJ.new_empty(n, rows, b_NJK.shape[2])
    for i in range(n):
        torch.mm(a_NIJ[i], b_NJK[i], out=out[i])
    return out


def _probabilities(
    q_b: Tensor, k: Tensor, block: _Block, scores: ScoreTerms, group: PaddedGroup
) -> tuple[Tensor, Tensor | None]:
    """P of a block, (N, G·b, keys), and the slope of the soft cap where there is one."""
    s = _products(q_b, k[:, block.keys].transpose(1, 2))
    slope = None
    if scores.softcap is not None:
        t = torch.tanh(s / scores.softcap)
        s, slope = t * scores.softcap, 1 - t * t
    b, keys = block.i1 - block.i0, s.shape[2]
    by_head = s.view(s.shape[0], s.shape[1] // b, b, keys)
    if scores.bias is not None:
        bias_nHbL = scores.bias[group][:, :, block.i0 : block.i1, block.keys]
        # (n·K, G, …) and (n, H, …) are the same heads in the same order.
        s.view(group.count, -1, b, keys).add_(bias_nHbL)
    elif scores.window is None and scores.chunk is None:
        # only the square at the end has anything to hide
        by_head[..., keys - b :] += _mask(0, b, 0, b, None, None, s.dtype, s.device)
    else:
        where = block.i0, block.i1, block.j0, block.i1
        by_head += _mask(*where, scores.window, scores.chunk, s.dtype, s.device)
    # torch sums 16-bit softmax in float32 inside; asking for the dtype would be two more passes.
    p = torch.softmax(s, dim=-1)
    if scores.sinks is not None:
        log_nHb1 = s.logsumexp(-1, keepdim=True).view(group.count, -1, b, 1)
        share = torch.sigmoid(log_nHb1 - scores.sinks.to(s.dtype)[:, None, None])
        p.view(group.count, -1, b, keys).mul_(share)
    return p, slope


@lru_cache(maxsize=64)
def _mask(
    i0: int,
    i1: int,
    j0: int,
    j1: int,
    window: int | None,
    chunk: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return mask(i0, i1, j0, j1, window, chunk, torch.empty(0, dtype=dtype, device=device))


def mask(
    i0: int, i1: int, j0: int, j1: int, window: int | None, chunk: int | None, like: Tensor
) -> Tensor:
    """0 where query i of [i0, i1) may see key j of [j0, j1), -inf elsewhere."""
    i = torch.arange(i0, i1, device=like.device)[:, None]
    j = torch.arange(j0, j1, device=like.device)[None, :]
    seen = j <= i
    if window is not None:
        seen &= j > i - window
    if chunk is not None:
        seen &= j >= i // chunk * chunk
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -math.inf
    )
