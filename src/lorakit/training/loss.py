"""The loss of a batch: negative log-likelihood in nats, summed over its supervised tokens.

    nll_sum = Σ_t  -log p(token_t | tokens before it in its own sequence)

A loss returns the sum and the count; the loop divides once, by the count of the whole step, so
that how a step was split into batches cannot change its gradient. The output head sees only the
positions that predict a supervised token.

Legend: T tokens of a batch, L supervised tokens, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.data.batches import Batch
from lorakit.execution.runnable import Runnable
from lorakit.kernels.groups import Linear
from lorakit.kernels.head import chunked_head_loss, label_loss
from lorakit.kernels.token_loss import PLAIN, TokenLoss
from lorakit.training.spec import TrainSpec


def token_loss(spec: TrainSpec) -> TokenLoss:
    """The form of a token's loss that a run asks for."""
    return TokenLoss(by_probability=spec.loss == "dft", smoothing=spec.label_smoothing)


class Loss(Protocol):
    """What a loop asks of a task: the loss of a batch by a model that is made ready."""

    def __call__(self, batch: Batch, *, training: bool = False) -> tuple[Tensor, float]:
        """Nats summed, and supervised tokens; dropout is on where `training` says so.

        Where rows have weights, they weigh the nats in training, and the count is the sum of the weights.
        """


class CausalLoss:
    """The fastest loss that is right for a causal language model, found by trying it once.

    Sequences are packed where that is right, padded where that is, and run alone otherwise; the head
    runs in chunks with its gradient formed in the forward pass where it is a plain matrix, with or
    without a pair, and through the model's own forward (softcaps, scales) otherwise.

    Args:
        model: a causal LM, or one that is made ready.
        recompute: activation checkpointing while it trains.
        kind: the form of a token's loss while it trains; else it is measured in plain nats.
    """

    def __init__(self, model: Any, *, recompute: bool = False, kind: TokenLoss = PLAIN) -> None:
        self.runnable = model if isinstance(model, Runnable) else Runnable(model)
        self.recompute, self.kind = recompute, kind
        self._way()

    def __call__(self, batch: Batch, *, training: bool = False) -> tuple[Tensor, float]:
        """Nats summed, and what the step divides them by: supervised tokens, or their weights' sum."""
        self.runnable.prepare(max(batch.lengths_S))
        nll = self._way()(
            self.runnable,
            batch,
            training=training,
            recompute=self.recompute and training,
            kind=self.kind if training else PLAIN,
        )
        return nll, batch.divisor if training else batch.token_count

    def _way(self) -> Callable[..., Tensor]:
        """Asked for each batch: longer rows than before may have changed it."""
        if not self.runnable.packs:
            return unpacked_loss
        return packed_loss if self.runnable.head is None else chunked_loss


def unpacked_loss(
    runnable: Runnable,
    batch: Batch,
    *,
    training: bool = False,
    recompute: bool = False,
    kind: TokenLoss = PLAIN,
) -> Tensor:
    """Through the model's own forward, padded or each row alone: right for every causal LM."""
    logits_LV = runnable.unpacked_logits(
        batch, batch.predict_L, training=training, recompute=recompute
    )
    return logits_loss(logits_LV, batch, kind, training=training)


def packed_loss(
    runnable: Runnable,
    batch: Batch,
    *,
    training: bool = False,
    recompute: bool = False,
    kind: TokenLoss = PLAIN,
) -> Tensor:
    """Packed sequences; logits of the positions that predict by the model's own head."""
    logits_LV = runnable.logits(batch, batch.predict_L, training=training, recompute=recompute)
    return logits_loss(logits_LV, batch, kind, training=training)


def chunked_loss(
    runnable: Runnable,
    batch: Batch,
    *,
    training: bool = False,
    recompute: bool = False,
    kind: TokenLoss = PLAIN,
) -> Tensor:
    """Packed sequences; a plain head in chunks, its gradient formed in the forward pass."""
    hidden_TD = runnable.hidden(batch, training=training, recompute=recompute)
    hidden_LD = hidden_TD.index_select(0, batch.predict_L)
    head = runnable.head
    assert head is not None
    return head_loss(head, hidden_LD, batch.labels_L, kind, batch.factor_L if training else None)


def head_loss(
    head: Linear,
    hidden_LD: Tensor,
    labels_L: Tensor,
    kind: TokenLoss = PLAIN,
    factor_L: Tensor | None = None,
) -> Tensor:
    """Summed nats of labels by a plain head, in chunks, its gradients formed in the forward pass.

    Args:
        head: see `Runnable.head`; with one pair for all rows, or none.
        hidden_LD: hidden states of the positions that predict a label.
        labels_L: the labels.
        kind: the form of a token's loss.
        factor_L: of each token's loss; None where all are 1.
    """
    assert isinstance(head.weight, Tensor)
    pair = head.pairs[0] if head.pairs else None
    return chunked_head_loss(hidden_LD, head.weight, head.bias, labels_L, pair, kind, factor_L)


def logits_loss(
    logits_LV: Tensor, batch: Batch, kind: TokenLoss = PLAIN, *, training: bool = False
) -> Tensor:
    """Summed nats of a batch's labels by the logits of the positions that predict them."""
    return label_loss(logits_LV, batch.labels_L, kind, batch.factor_L if training else None)


@torch.no_grad()
def held_out_loss(batches: Iterable[Batch], loss: Loss) -> float:
    """Mean loss in nats per supervised token, in evaluation mode."""
    total, tokens = 0.0, 0.0
    for batch in batches:
        nll, count = loss(batch)
        total += float(nll)
        tokens += count
    return total / tokens
