"""Causal attention over packed sequences: the arithmetic, without transformers.

    P = softmax(s·Q Kᵀ + mask),  O = P V        (arXiv 1706.03762), within each sequence

Shapes: T tokens in all, H query heads, K key heads, G = H / K query heads for each key head,
D elements a head; a group is n sequences padded to M tokens, on the right: causality hides the
padding from every real token, and the padded rows are never read back, so no padding mask is
needed.

Four ways, chosen by `attend`:

  flash    bfloat16 on a CPU (attention_flash.py): torch's forward, a backward of plain matmuls.
  blocked  everything else on a CPU (attention_blocked.py): batched matmuls over blocks of query rows, with
           a hand-written backward. Memory is linear in T.
  torch    float32 sequences beyond `LONG` tokens on a CPU, and everything on an accelerator:
           F.scaled_dot_product_attention on the padded group.
  plain    autograd through the formula, for attention dropout.

What each of them costs is in docs/performance.md, "Attention".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakit.kernels.attention_blocked import KEEP, Blocked, mask
from lorakit.kernels.attention_flash import Flash, suits
from lorakit.kernels.layout import Layout, PaddedGroup

LONG = 1536
"""Sequences beyond this many tokens go to torch on a CPU; docs/performance.md has the table that says so."""


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
        q_THD: queries, H heads.
        k_TKD: keys, K heads; H is a multiple of K.
        v_TKD: values, K heads.
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
    if simple and suits(q_THD.dtype, q_THD.device) and q_THD.shape[2] == v_TKD.shape[2]:
        return Flash.apply(q_THD, k_TKD, v_TKD, where.groups, scale)
    blocked = tuple(
        g for g in where.groups if on_cpu and not dropout and (g.length <= LONG or not simple)
    )
    if blocked:
        out_THD = Blocked.apply(q_THD, k_TKD, v_TKD, blocked, scale, window, softcap)
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


def probabilities_kept(
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None,
    softcap: float | None,
) -> float:
    """Numbers of P that one head keeps for the backward, for each token of these sequences."""
    if softcap is not None or (window is None and suits(dtype, device)):
        return 0.0
    return sum(n * n for n in lengths if n <= KEEP) / sum(lengths)


def _pad(x_THD: Tensor, group: PaddedGroup, key_heads: int) -> Tensor:
    """The group's rows of x as (n, K, G, M, D); G is 1 for keys and values."""
    x = x_THD.index_select(0, group.rows)
    heads, width = x.shape[1:]
    x = x.view(group.count, group.length, key_heads, heads // key_heads, width)
    return x.permute(0, 2, 3, 1, 4)


def _unpad(x_nHMD: Tensor, group: PaddedGroup) -> Tensor:
    """The real rows of (n, H, M, D), as (R, H, D) in the order of `group.tokens`."""
    return x_nHMD.transpose(1, 2).flatten(0, 1).index_select(0, group.real)


def _torch(q_nHMD: Tensor, k_nKMD: Tensor, v_nKMD: Tensor, scale: float) -> Tensor:
    """torch's own kernel; the padding on the right is hidden by causality."""
    return F.scaled_dot_product_attention(
        q_nHMD, k_nKMD, v_nKMD, is_causal=True, scale=scale, enable_gqa=True
    )


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
    s = s + mask(0, length, 0, length, window, s)
    wide = torch.float64 if s.dtype == torch.float64 else torch.float32
    p = F.dropout(torch.softmax(s, dim=-1, dtype=wide).to(s.dtype), dropout)
    return p @ v_nHMD
