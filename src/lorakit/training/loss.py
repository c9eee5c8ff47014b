"""The loss of a batch: negative log-likelihood in nats, summed over the tokens that bear it.

    nll_sum = Σ_t  -log p(token_t | tokens before it in its own sequence)

A loss returns the sum and the count; the loop divides once, by the count of the whole step, so
that how a step was split into batches cannot change its gradient. The output head sees only the
positions that predict a loss-bearing token.

Legend: T tokens of a batch, L loss-bearing tokens, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorakit.data.batches import Batch
from lorakit.models import attention
from lorakit.models.layout import compiles_shapes, rounded

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]

# 512 rows of a 49,152-word vocabulary are 100 MB of float32 logits: large enough for a matmul at
# full speed, small beside the activations.
HEAD_CHUNK = 512
# Rows whose softmax is taken at once on a CPU: 3 MB of float32 for that vocabulary.
SOFTMAX_ROWS = 16


def make_loss(model: Any) -> Loss:
    """The fastest loss that is right for this model, found by trying it on a few tokens.

    Sequences go end to end without padding where the model's attention allows it, and through
    its own padded forward otherwise; the head runs in chunks with its gradient formed in the
    forward pass where it is a plain matrix, and through the model's own forward (softcaps,
    scales) otherwise.
    """
    if not attention.supports_packing(model):
        return padded_loss
    return chunked_loss if attention.head_is_plain(model) else packed_loss


def padded_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Through the model's own forward on a padded rectangle: right for every causal LM."""
    logits_LV = attention.padded_logits(
        model, batch.ids_T, batch.positions_T, batch.lengths_S, batch.predict_L
    )
    return logits_loss(logits_LV, batch), batch.token_count


def packed_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Sequences end to end; logits of loss-bearing positions by the model's own head."""
    logits_LV = attention.packed_logits(
        model, batch.ids_T, batch.positions_T, batch.lengths_S, batch.predict_L
    )
    return logits_loss(logits_LV, batch), batch.token_count


def chunked_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """Sequences end to end; a plain head in chunks, its gradient formed in the forward pass."""
    hidden_TD = attention.packed_hidden(model, batch.ids_T, batch.positions_T, batch.lengths_S)
    hidden_LD = hidden_TD.index_select(0, batch.predict_L)
    return head_loss(model, hidden_LD, batch.labels_L), batch.token_count


def head_loss(model: Any, hidden_LD: Tensor, labels_L: Tensor) -> Tensor:
    """Summed nats of labels by a plain head, in chunks, its gradient formed in the forward pass."""
    head = model.get_output_embeddings()
    return cast(Tensor, _ChunkedHead.apply(hidden_LD, head.weight, head.bias, labels_L))


def logits_loss(logits_LV: Tensor, batch: Batch) -> Tensor:
    """Summed nats of a batch's labels by the logits of its loss-bearing positions."""
    # float32 at least, whatever the base is kept in: the sum runs over the vocabulary.
    wide = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32))
    return F.cross_entropy(wide, batch.labels_L, reduction="sum")


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


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> float:
    """Mean loss in nats per loss-bearing token, in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        total, tokens = 0.0, 0
        for batch in batches:
            nll, count = loss(model, batch)
            total += float(nll)
            tokens += count
    finally:
        model.train(was_training)
    return total / tokens
