"""Causal attention over packed sequences: the arithmetic, without transformers.

    P = softmax(s·Q Kᵀ + mask),  O = P V        (arXiv 1706.03762), within each sequence

Shapes: T tokens in all, H query heads, K key heads, G = H / K query heads for each key head,
D elements a head; a group is n sequences padded to M tokens, on the right: causality hides the
padding from every real token, and the padded rows are never read back, so no padding mask is
needed.

Five ways, chosen by `attend`:

  varlen   16 bits on a GPU (attention_varlen.py): flash kernels that take the sequences end to end.
  flash    bfloat16 on a CPU (attention_flash.py): torch's forward, a backward of plain matmuls.
  blocked  everything else on a CPU (attention_blocked.py): batched matmuls over blocks of query rows, with
           a hand-written backward. Memory is linear in T.
  torch    float32 sequences beyond `LONG` tokens on a CPU, and almost everything on an accelerator:
           F.scaled_dot_product_attention on the padded group, masks and sinks as what it adds to scores.
  plain    autograd through the formula: attention dropout, and soft caps on an accelerator.

What each of them costs is in docs/performance.md, "Attention".
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakit.kernels import attention_varlen
from lorakit.kernels.attention_blocked import KEEP, Blocked, ScoreTerms, mask
from lorakit.kernels.attention_flash import Flash, suits
from lorakit.kernels.layout import Layout, PaddedGroup

LONG = 1536
"""Sequences beyond this many tokens go to torch on a CPU; docs/performance.md has the table that says so."""


def attend(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    where: Layout,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    sinks: Tensor | None = None,
    bias: Mapping[PaddedGroup, Tensor] | None = None,
) -> Tensor:
    """Attention of each sequence on itself, (T, H, E).

    Args:
        q_THD: queries, H heads.
        k_TKD: keys, K heads; H is a multiple of K.
        v_TKE: values, K heads, of any width E.
        where: the sequences, from `layout`.
        scale: the s of the formula.
        window: a token sees itself and the window - 1 tokens before it; None: all before it.
        chunk: a token sees those before it in its own chunk of so many tokens (Llama 4); None: all.
        softcap: scores become c·tanh(score / c) before the mask (Gemma 2, arXiv 2408.00118).
        dropout: share of P's entries set to zero, the rest scaled up.
        sinks: (H,) one more logit of each head in the softmax, without a value (gpt-oss,
            arXiv 2508.10925).
        bias: of each group what is added to its scores after the soft cap, (n or 1, H or 1, M, M):
            -inf where a token does not see another. It replaces causality, `window` and `chunk`.
    """
    longest = max(where.lengths)
    window = None if window is not None and window >= longest else window
    chunk = None if chunk is not None and chunk >= longest else chunk
    simple = all(each is None for each in (window, chunk, softcap, sinks, bias)) and not dropout
    alike = q_THD.shape[2] == v_TKE.shape[2]
    if simple and alike and suits(q_THD.dtype, q_THD.device):
        return Flash.apply(q_THD, k_TKD, v_TKE, where.groups, scale)
    if not dropout and all(each is None for each in (chunk, sinks, bias)):
        packed = (q_THD, k_TKD, v_TKE, where, scale, window, softcap)
        found = attention_varlen.attended(*packed, padded=_padded)
        if found is not None:
            return found
    # Its backward is written out for queries, keys and values alone.
    constant = not any(
        each.requires_grad for each in (sinks, *(bias or {}).values()) if each is not None
    )
    own_kernel = q_THD.device.type == "cpu" and not dropout and constant
    blocked = tuple(
        g for g in where.groups if own_kernel and (g.length <= LONG or not simple or not alike)
    )
    scores = ScoreTerms(scale, window, chunk, softcap, sinks, bias)
    if blocked:
        out_THE = Blocked.apply(q_THD, k_TKD, v_TKE, blocked, scores)
    else:
        out_THE = q_THD.new_zeros(*q_THD.shape[:2], v_TKE.shape[2])
    rest = [group for group in where.groups if group not in blocked]
    return _in_groups(q_THD, k_TKD, v_TKE, rest, scores, out_THE, simple=simple, dropout=dropout)


def _padded(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    where: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention in padded groups by torch's kernel or the formula, (T, H, E)."""
    scores = ScoreTerms(scale, window, None, softcap, None, None)
    out_THE = q_THD.new_zeros(*q_THD.shape[:2], v_TKE.shape[2])
    simple = window is None and softcap is None
    return _in_groups(
        q_THD, k_TKD, v_TKE, where.groups, scores, out_THE, simple=simple, dropout=0.0
    )


def _in_groups(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    groups: Sequence[PaddedGroup],
    scores: ScoreTerms,
    out_THE: Tensor,
    *,
    simple: bool,
    dropout: float,
) -> Tensor:
    """`out` with these groups' rows in it; simple: nothing but causality hides a token."""
    for group in groups:
        q, k, v = (_pad(x, group, k_TKD.shape[1]).flatten(1, 2) for x in (q_THD, k_TKD, v_TKE))
        if scores.softcap is None and not dropout:
            o = _torch(q, k, v, scores, group, simple)
        else:
            o = _plain(q, k, v, scores, group, dropout)
        out_THE = out_THE.index_copy(0, group.tokens, _unpad(o, group))
    return out_THE


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


def _torch(
    q_nHMD: Tensor,
    k_nKMD: Tensor,
    v_nKME: Tensor,
    scores: ScoreTerms,
    group: PaddedGroup,
    simple: bool,
) -> Tensor:
    """torch's own kernel; the padding on the right is hidden by causality.

    A sink is a key of zeros with a value of zeros, whose score is what is added to it.
    """
    if simple:
        return F.scaled_dot_product_attention(
            q_nHMD, k_nKMD, v_nKME, is_causal=True, scale=scores.scale, enable_gqa=True
        )
    times = q_nHMD.shape[1] // k_nKMD.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) for x in (k_nKMD, v_nKME))
    added = _added(q_nHMD, scores, group)
    if scores.sinks is not None:
        k, v = (F.pad(x, (0, 0, 1, 0)) for x in (k, v))
        sinks = scores.sinks.to(q_nHMD.dtype)[None, :, None, None]
        shape = max(added.shape[0], 1), q_nHMD.shape[1], added.shape[2]
        added = torch.cat((sinks.expand(*shape, 1), added.expand(*shape, -1)), dim=-1)
    return F.scaled_dot_product_attention(q_nHMD, k, v, attn_mask=added, scale=scores.scale)


def _added(q_nHMD: Tensor, scores: ScoreTerms, group: PaddedGroup) -> Tensor:
    """What is added to a group's scores, (n or 1, H or 1, M, M)."""
    if scores.bias is not None:
        return scores.bias[group].to(q_nHMD.dtype)
    length = q_nHMD.shape[2]
    return mask(0, length, 0, length, scores.window, scores.chunk, q_nHMD)[None, None]


def _plain(
    q_nHMD: Tensor,
    k_nKMD: Tensor,
    v_nKME: Tensor,
    scores: ScoreTerms,
    group: PaddedGroup,
    dropout: float,
) -> Tensor:
    """The formula as it stands, differentiated by autograd."""
    times = q_nHMD.shape[1] // k_nKMD.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) for x in (k_nKMD, v_nKME))
    s = q_nHMD @ k.transpose(2, 3) * scores.scale
    if scores.softcap is not None:
        s = scores.softcap * torch.tanh(s / scores.softcap)
    s = s + _added(q_nHMD, scores, group)
    if scores.sinks is not None:
        sinks = scores.sinks.to(s.dtype)[None, :, None, None].expand(*s.shape[:3], 1)
        s = torch.cat((s, sinks), dim=-1)
    p = torch.softmax(s, dim=-1, dtype=torch.promote_types(s.dtype, torch.float32)).to(s.dtype)
    return F.dropout(p[..., : k.shape[2]], dropout) @ v
