"""The loss of a batch: negative log-likelihood in nats, summed over the tokens that bear it.

    nll_sum = Σ_t  -log p(token_t | tokens before it in its own sequence)

A loss returns the sum and the count; the loop divides once, by the count of the whole step, so
that how a step was split into batches cannot change its gradient. The output head sees only the
positions that predict a loss-bearing token.

Legend: T tokens of a batch, L loss-bearing tokens, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.data.batches import Batch
from lorakit.execution import packed as attention
from lorakit.kernels.head import chunked_head_loss

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]


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
    return chunked_head_loss(hidden_LD, head.weight, head.bias, labels_L)


def logits_loss(logits_LV: Tensor, batch: Batch) -> Tensor:
    """Summed nats of a batch's labels by the logits of its loss-bearing positions."""
    # float32 at least, whatever the base is kept in: the sum runs over the vocabulary.
    wide = logits_LV.to(torch.promote_types(logits_LV.dtype, torch.float32))
    return F.cross_entropy(wide, batch.labels_L, reduction="sum")


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
