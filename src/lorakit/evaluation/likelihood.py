"""How likely a model finds each row: held-out loss row by row, and next-token distributions.

Legend: S rows, L supervised tokens of a batch, C of them at once, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorakit.data import TokenTable, micro_batches
from lorakit.data.batches import Batch
from lorakit.execution.runnable import Runnable
from lorakit.kernels.head import label_nats

# 128 rows of a 49,152-word vocabulary are 25 MB of float32, well below the size of a training step: an
# evaluation in the middle of training should not be what sets its peak of memory.
_CHUNK = 128

Floats = NDArray[np.float64]
LogProbs = Callable[[Batch], Iterator[tuple[slice, Tensor]]]


def log_probs_of(model: Any) -> LogProbs:
    """The fastest correct way to this model's next-token distributions, tried once.

    Returns:
        A function of a batch that gives, chunk by chunk, the slice of its L supervised tokens and
        log p of every word there, (C, V) in float32 at least; in evaluation mode. To be used
        without gradients.
    """
    runnable = Runnable(model)

    def of_batch(batch: Batch) -> Iterator[tuple[slice, Tensor]]:
        runnable.prepare(max(batch.lengths_S))
        if not runnable.packs:
            return _at_once(runnable.unpacked_logits(batch, batch.predict_L))
        if runnable.head is None:
            return _at_once(runnable.logits(batch, batch.predict_L))
        return _in_chunks(runnable, batch)

    return of_batch


def _in_chunks(runnable: Runnable, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
    hidden_TD = runnable.hidden(batch)
    head = runnable.model.get_output_embeddings()
    for start in range(0, batch.token_count, _CHUNK):
        part = slice(start, min(start + _CHUNK, batch.token_count))
        yield part, _log_softmax(head(hidden_TD.index_select(0, batch.predict_L[part])))


def _at_once(logits_LV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(logits_LV), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(logits_LV)))
        yield part, _log_softmax(logits_LV[part])


def _log_softmax(logits: Tensor) -> Tensor:
    # float32 at least, whatever the base is kept in: the sum runs over the vocabulary.
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def row_losses(model: Any, table: TokenTable, batch_tokens: int) -> tuple[Floats, Floats]:
    """Negative log-likelihood of each row, and its supervised tokens; in evaluation mode.

    Args:
        model: a causal LM.
        table: the rows.
        batch_tokens: most tokens of a forward pass.

    Returns:
        Nats (S,), summed over each row's supervised tokens, and their counts (S,).
    """
    log_probs = log_probs_of(model)
    nats_S, tokens_S = np.zeros(len(table)), np.zeros(len(table))
    for batch in micro_batches(table, range(len(table)), batch_tokens):
        moved = batch.to(model.device)
        row_L = row_of(batch)
        for part, log_p_CV in log_probs(moved):
            nats_C = label_nats(log_p_CV, moved.labels_L[part])
            np.add.at(nats_S, row_L[part], nats_C.double().cpu().numpy())
        np.add.at(tokens_S, row_L, 1.0)
    return nats_S, tokens_S


def row_of(batch: Batch) -> NDArray[np.int64]:
    """The row in the table of each supervised token of a batch, int64 (L,)."""
    of_token_T = np.repeat(np.array(batch.rows_S, dtype=np.int64), np.array(batch.lengths_S))
    return np.asarray(of_token_T[batch.predict_L.cpu().numpy()])


def per_token(nats: Sequence[float] | Floats, tokens: Sequence[float] | Floats) -> float:
    """Mean over tokens: Σ nats / Σ tokens."""
    return float(np.sum(nats) / np.sum(tokens))
