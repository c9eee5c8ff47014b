"""Causal attention over sequences that lie end to end: the arithmetic, without transformers.

    P = softmax(s·Q Kᵀ + mask),  O = P V        (arXiv 1706.03762), within each sequence

Shapes: T tokens in all, H query heads, K key heads, G = H / K query heads for each key head,
D numbers a head; a group is n sequences padded to M tokens, on the right: causality hides the
padding from every real token, and the padded rows are never read back, so no padding mask is
needed.

Three ways, chosen by `attend`:

  blocked  the default on a CPU: plain batched matmuls over blocks of query rows, keys only up to
           the block's end, with a hand-written backward. Memory is linear in T.
  torch    sequences beyond `LONG` tokens on a CPU, and everything on an accelerator: F.scaled_dot_
           product_attention on the padded group.
  plain    autograd through the formula, for attention dropout.

Measured fwd+bwd on 2 AVX2 cores, float32, 9 heads on 3 key heads, D = 64, milliseconds a layer
(torch with its key heads repeated; with enable_gqa its backward takes 104 ms on the first line):

    sequences    blocked   torch
    16 x 60          6.4     9.8
     8 x 200        21.5    33.1
     4 x 512        65.7    89.4
     2 x 1024       96.2   115.4
     1 x 2048      236.3   179.4
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.models.layout import Group, Layout

BLOCK = 64
"""Query rows of a block: larger ones multiply more masked entries, smaller ones more often."""
LONG = 1536
"""Sequences beyond this many tokens go to torch on a CPU; the table above is the reason."""
KEEP = 128
"""Groups up to this many tokens keep P for the backward; beyond, it is computed again: P then
outgrows Q, K, V and O together, and computing it costs a quarter more of the attention's time."""


def attend(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    where: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each sequence on itself, (T, H, D).

    Args:
        q_THD: queries; k_TKD, v_TKD: keys and values, K heads with H a multiple of K.
        k_TKD: keys.
        v_TKD: values.
        where: the sequences, from `layout`.
        scale: the s of the formula.
        window: a token sees itself and the window - 1 tokens before it; None: all before it.
        softcap: scores become c·tanh(score / c) before the mask (Gemma 2, arXiv 2408.00118).
        dropout: share of P's entries set to zero, the rest scaled up.
    """
    if window is not None and window >= max(where.lengths):
        window = None
    simple = window is None and softcap is None and not dropout
    on_cpu = q_THD.device.type == "cpu"
    blocked = tuple(
        g for g in where.groups if on_cpu and not dropout and (g.length <= LONG or not simple)
    )
    if blocked:
        out_THD = _Blocked.apply(q_THD, k_TKD, v_TKD, blocked, scale, window, softcap)
    else:
        out_THD = torch.zeros_like(q_THD)
    for group in where.groups:
        if group not in blocked:
            q, k, v = (_pad(x, group, k_TKD.shape[1]).flatten(1, 2) for x in (q_THD, k_TKD, v_TKD))
            if simple:
                o = _torch(q, k, v, scale)
            else:
                o = _plain(q, k, v, scale, window, softcap, dropout)
            out_THD = out_THD.index_copy(0, group.tokens, _unpad(o, group))
    return out_THD


def _pad(x_THD: Tensor, group: Group, key_heads: int) -> Tensor:
    """The group's rows of x as (n, K, G, M, D); G is 1 for keys and values."""
    x = x_THD.index_select(0, group.rows)
    heads, width = x.shape[1:]
    x = x.view(group.count, group.length, key_heads, heads // key_heads, width)
    return x.permute(0, 2, 3, 1, 4)


def _unpad(x_nHMD: Tensor, group: Group) -> Tensor:
    """The real rows of (n, H, M, D), as (R, H, D) in the order of `group.tokens`."""
    return x_nHMD.transpose(1, 2).flatten(0, 1).index_select(0, group.real)


def _torch(q_nHMD: Tensor, k_nKMD: Tensor, v_nKMD: Tensor, scale: float) -> Tensor:
    """torch's own kernel; on a CPU with the key heads repeated (see the module's table)."""
    if q_nHMD.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q_nHMD, k_nKMD, v_nKMD, is_causal=True, scale=scale, enable_gqa=True
        )
    times = q_nHMD.shape[1] // k_nKMD.shape[1]
    k_nHMD, v_nHMD = (x.repeat_interleave(times, dim=1) for x in (k_nKMD, v_nKMD))
    return F.scaled_dot_product_attention(q_nHMD, k_nHMD, v_nHMD, is_causal=True, scale=scale)


def _plain(
    q_nHMD: Tensor,
    k_nKMD: Tensor,
    v_nKMD: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The formula as it stands, differentiated by autograd."""
    length, times = q_nHMD.shape[2], q_nHMD.shape[1] // k_nKMD.shape[1]
    k_nHMD, v_nHMD = (x.repeat_interleave(times, dim=1) for x in (k_nKMD, v_nKMD))
    s = q_nHMD @ k_nHMD.transpose(2, 3) * scale
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    s = s + _mask(0, length, 0, length, window, s)
    wide = torch.float64 if s.dtype == torch.float64 else torch.float32
    p = F.dropout(torch.softmax(s, dim=-1, dtype=wide).to(s.dtype), dropout)
    return p @ v_nHMD


def _mask(i0: int, i1: int, j0: int, j1: int, window: int | None, like: Tensor) -> Tensor:
    """0 where query i of [i0, i1) may see key j of [j0, j1), -inf elsewhere."""
    i = torch.arange(i0, i1, device=like.device)[:, None]
    j = torch.arange(j0, j1, device=like.device)[None, :]
    seen = j <= i
    if window is not None:
        seen &= j > i - window
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -math.inf
    )


class _Blocked(torch.autograd.Function):
    """Attention by blocks of query rows.

    With S = s·QKᵀ + mask, P = softmax(S), O = P V (arXiv 2205.14135, appendix B.2)::

        dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P * (dP - rowsum(dO * O)),
        dQ = s·dS K,  dK = s·dSᵀ Q

    Inside, tensors are (n·K, G, M, D) for queries and (n·K, M, D) for keys and values; one matmul
    serves the G query heads of a key head. Tokens of groups not given keep zeros.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        groups: tuple[Group, ...],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        out_THD = torch.zeros(q_THD.shape, dtype=q_THD.dtype)
        kept: list[Tensor] = []
        for group in groups:
            q, k, v = _padded(q_THD, k_TKD, v_TKD, group)
            o = torch.empty_like(q)
            for block in _blocks(group.length, window):
                p, _ = _probabilities(block.of(q) * scale, k, block, window, softcap)
                block.put(o, torch.bmm(p, v[:, block.keys]))
                if group.length <= KEEP and softcap is None:
                    kept.append(p)
            out_THD[group.tokens] = _flat(o, group, q_THD.shape[1])
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, *kept)
        ctx.settings = groups, scale, window, softcap
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_TKD, v_TKD, out_THD, *kept = ctx.saved_tensors
        groups, scale, window, softcap = ctx.settings
        heads, key_heads = q_THD.shape[1], k_TKD.shape[1]
        dq_THD, dk_TKD, dv_TKD = (
            torch.zeros(x.shape, dtype=x.dtype) for x in (q_THD, k_TKD, v_TKD)
        )
        delta_TH1 = (grad_THD * out_THD).sum(-1, keepdim=True)
        left = iter(kept)
        for group in groups:
            q, k, v = _padded(q_THD, k_TKD, v_TKD, group)
            # Padded rows get zeros: their own outputs were never used.
            do = _pad_zero(grad_THD, group, key_heads)
            delta = _pad_zero(delta_TH1, group, key_heads)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for block in _blocks(group.length, window):
                q_b, do_b, keys = block.of(q) * scale, block.of(do), block.keys
                slope = None
                if group.length <= KEEP and softcap is None:
                    p = next(left)
                else:
                    p, slope = _probabilities(q_b, k, block, window, softcap)
                dv[:, keys] += torch.bmm(p.transpose(1, 2), do_b)
                ds = torch.bmm(do_b, v[:, keys].transpose(1, 2)).sub_(block.of(delta)).mul_(p)
                if slope is not None:
                    ds.mul_(slope)
                block.put(dq, torch.bmm(ds, k[:, keys]).mul_(scale))
                dk[:, keys] += torch.bmm(ds.transpose(1, 2), q_b)
            dq_THD[group.tokens] = _flat(dq, group, heads)
            dk_TKD[group.tokens] = _flat(dk[:, None], group, key_heads)
            dv_TKD[group.tokens] = _flat(dv[:, None], group, key_heads)
        return dq_THD, dk_TKD, dv_TKD, None, None, None, None


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


def _blocks(length: int, window: int | None) -> Iterator[_Block]:
    # A last block of a few rows costs as many calls as a full one: spread the rows evenly.
    size = math.ceil(length / max(1, round(length / BLOCK)))
    for i0 in range(0, length, size):
        yield _Block(i0, min(i0 + size, length), 0 if window is None else max(0, i0 - window + 1))


def _probabilities(
    q_b: Tensor, k: Tensor, block: _Block, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """P of a block, (N, G·b, keys), and the slope of the soft cap where there is one."""
    s = torch.bmm(q_b, k[:, block.keys].transpose(1, 2))
    slope = None
    if softcap is not None:
        t = torch.tanh(s / softcap)
        s, slope = t * softcap, 1 - t * t
    b, keys = block.i1 - block.i0, s.shape[2]
    by_head = s.view(s.shape[0], s.shape[1] // b, b, keys)
    if window is None:  # only the square at the end has anything to hide
        by_head[..., keys - b :] += _mask(0, b, 0, b, None, s)
    else:
        by_head += _mask(block.i0, block.i1, block.j0, block.i1, window, s)
    wide = torch.float64 if s.dtype == torch.float64 else torch.float32
    return torch.softmax(s, dim=-1, dtype=wide).to(s.dtype), slope


def _padded(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, group: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """The group's queries (n·K, G, M, D), keys and values (n·K, M, D)."""
    key_heads = k_TKD.shape[1]
    q, k, v = (_pad(x, group, key_heads).flatten(0, 1).contiguous() for x in (q_THD, k_TKD, v_TKD))
    return q, k[:, 0], v[:, 0]


def _pad_zero(x_THD: Tensor, group: Group, key_heads: int) -> Tensor:
    """As `_pad`, (n·K, G, M, D), but with zeros in the padding."""
    heads, width = x_THD.shape[1:]
    x = torch.zeros(group.count * group.length, heads, width, dtype=x_THD.dtype)
    x[group.real] = x_THD[group.tokens]
    x = x.view(group.count, group.length, key_heads, heads // key_heads, width)
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)


def _flat(x_NGMD: Tensor, group: Group, heads: int) -> Tensor:
    """The real rows of (n·K, G, M, D), as (R, H, D) in the order of `group.tokens`."""
    x_nHMD = x_NGMD.reshape(group.count, heads, group.length, x_NGMD.shape[3])
    return _unpad(x_nHMD, group)
