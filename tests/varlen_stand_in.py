"""What stands in for varlen kernels on a CPU: it takes their documented arguments, and is strict about them."""

from itertools import pairwise

import torch


def dense(q, k, v, lengths, scale, window=None, softcap=None):
    """softmax(s·Q Kᵀ + mask) V over all tokens at once, the mask written out token by token."""
    tokens, times = len(q), q.shape[1] // k.shape[1]
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(tokens)
    sees = (number[:, None] == number[None, :]) & (place[:, None] >= place[None, :])
    if window is not None:
        sees &= place[:, None] - place[None, :] < window
    k, v = (x.repeat_interleave(times, 1) for x in (k, v))
    s = torch.einsum("thd,shd->hts", q, k) * scale
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    p = s.masked_fill(~sees, -torch.inf).softmax(-1)
    return torch.einsum("hts,she->the", p, v)


class StandIn:
    """`varlen_attn` of torch 2.13 and `flash_attn_varlen_func` of flash-attn, as they are documented."""

    def __init__(self, formats=(torch.bfloat16, torch.float16)):
        self.calls, self.formats = [], formats

    def sequences(self, q, k, v, cu_q, cu_k, max_q, max_k):
        for x in (q, k, v):
            assert x.dtype in self.formats
            assert x.dim() == 3
            assert x.stride(-1) == 1
        assert cu_q.dtype == cu_k.dtype == torch.int32
        starts = cu_q.tolist()
        assert torch.equal(cu_q, cu_k)
        assert starts[0] == 0
        assert starts[-1] == len(q)
        lengths = [b - a for a, b in pairwise(starts)]
        assert max_q == max_k >= max(lengths)
        return [(a, b) for a, b in pairwise(starts) if b > a]

    def compute(self, q, k, v, spans, scale, left, softcap=None):
        window = None if left == -1 else left + 1
        parts = [
            dense(
                *(x[a:b].float() for x in (q, k, v)),
                (b - a,),
                scale,
                window,
                softcap,
            )
            for a, b in spans
        ]
        return torch.cat(parts).to(q.dtype)

    def varlen_attn(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
        seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert isinstance(window_size, tuple)
        assert window_size[1] == 0  # else later tokens are seen
        self.calls.append(window_size)
        spans = self.sequences(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        return self.compute(query, key, value, spans, scale, window_size[0])

    def flash_attn_varlen_func(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
        softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert causal
        assert dropout_p == 0.0
        self.calls.append((window_size, softcap))
        spans = self.sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return self.compute(q, k, v, spans, softmax_scale, window_size[0], softcap or None)
