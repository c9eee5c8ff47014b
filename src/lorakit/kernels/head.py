"""The loss of a plain output head in chunks, without ever holding all logits.

    Σ_l  -log softmax(h_l Wᵀ + b)[label_l]

Legend: L supervised tokens, C those of a chunk, D hidden width, V vocabulary.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorakit.kernels.layout import compiles_shapes, rounded

# 512 rows of a 49,152-word vocabulary are 100 MB of float32 logits: large enough for a matmul at
# full speed, small beside the activations.
HEAD_CHUNK = 512
# Rows whose softmax is taken at once on a CPU: 3 MB of float32 for that vocabulary.
SOFTMAX_ROWS = 16


def chunked_head_loss(
    hidden_LD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_L: Tensor
) -> Tensor:
    """Summed nats of the labels; the gradients are formed in the forward pass.

    Args:
        hidden_LD: hidden states of the positions that predict a label.
        weight_VD: the head's weight.
        bias_V: its bias, or None.
        labels_L: int64 token ids.

    Returns:
        A scalar in float32 at least.
    """
    return cast(Tensor, _ChunkedHead.apply(hidden_LD, weight_VD, bias_V, labels_L))


class _ChunkedHead(torch.autograd.Function):
    """Σ cross-entropy(h Wᵀ + b, labels) without ever holding the (L, V) logits.

    Both gradients, (softmax - onehot) W and (softmax - onehot)ᵀ h, are formed chunk by chunk
    while the logits are there; the backward only scales them. A frozen W gets none.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_LD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_L: Tensor
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_LD) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V) if wants_bias and bias_V is not None else None
        total = torch.zeros((), dtype=torch.float64, device=hidden_LD.device)
        rows, vocab = hidden_LD.shape[0], weight_VD.shape[0]
        few_sizes = compiles_shapes(hidden_LD.dtype, hidden_LD.device)
        # One buffer for all chunks: asking the system for a hundred megabytes costs it more time
        # than the softmax does.
        size = min(HEAD_CHUNK, rounded(rows) if few_sizes else rows)
        logits_CV = hidden_LD.new_empty(size, vocab)
        for start in range(0, rows, HEAD_CHUNK):
            part = slice(start, min(start + HEAD_CHUNK, rows))
            hidden, labels = hidden_LD[part], labels_L[part]
            count = len(hidden)
            if few_sizes:  # rows of zeros, whose logits nobody reads
                hidden = F.pad(hidden, (0, 0, 0, min(HEAD_CHUNK, rounded(count)) - count))
            logits = torch.mm(hidden, weight_VD.t(), out=logits_CV[: len(hidden)])
            if bias_V is not None:
                logits.add_(bias_V)
            total += _nll_and_slope(logits[:count], labels)
            if not any((wants_hidden, wants_weight, wants_bias)):
                continue
            logits[count:].zero_()
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(logits, weight_VD)[:count]
            if grad_weight is not None:
                grad_weight.addmm_(logits.t(), hidden)
            if grad_bias is not None:
                grad_bias.add_(logits[:count].sum(0))
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total.to(torch.promote_types(hidden_LD.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors), None)


def _nll_and_slope(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Σ cross-entropy, in float64; the logits become softmax - onehot in their place.

    In float32 at least, whatever the base is kept in, because the sum runs over the vocabulary; a
    few rows at a time, which stay in the cache.
    """
    wide = torch.promote_types(logits_CV.dtype, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits_CV.device)
    at_once = SOFTMAX_ROWS if logits_CV.device.type == "cpu" else HEAD_CHUNK
    log_p_RV = logits_CV.new_empty(min(at_once, len(logits_CV)), logits_CV.shape[1], dtype=wide)
    for start in range(0, len(logits_CV), at_once):
        part = logits_CV[start : start + at_once]
        labels = labels_C[start : start + at_once, None]
        log_p = log_p_RV[: len(part)].copy_(part)
        torch.log_softmax(log_p, 1, out=log_p)
        total -= log_p.gather(1, labels).sum(dtype=torch.float64)
        log_p.exp_()[torch.arange(len(part), device=part.device), labels[:, 0]] -= 1
        part.copy_(log_p)
    return total
