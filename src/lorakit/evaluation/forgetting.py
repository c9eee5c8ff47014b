"""How far a model has moved from its base on text that the task is not about.

At each supervised token of a set of general rows, with p the base's distribution of the next
token and q the tuned model's:

    KL(p || q) = Σ_v p(v) (log p(v) - log q(v))     nats per token, 0 where nothing has changed

p is computed once for a base and stored, so that a trial holds one model and not two. Of each p the
`k` likeliest words are stored one by one, and all others are summed into one: by the data-processing
inequality (Cover and Thomas, 2.8) the KL of the two coarser distributions is at most the KL of
the whole ones, and equal to it with k = V. `BaseDistributions.mass` says how much of p the k words hold.
"""
# ruff: noqa: N815  (the fields carry their shapes in their names)

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorakit.data import TokenTable, micro_batches
from lorakit.data.table import Encoded
from lorakit.errors import OutputError
from lorakit.evaluation.likelihood import Floats, log_probs_of, row_of

LIKELIEST_WORDS = 256


@dataclass(frozen=True)
class BaseDistributions:
    """A base's distributions on general rows.

    Attributes:
        table: the rows, S of them with N supervised tokens in all, in their order.
        words_NK: the K likeliest next words at each supervised token, int64.
        log_p_NK: their log-probabilities, float32.
        mass: mean probability that the K words hold together.
    """

    table: TokenTable
    words_NK: Tensor
    log_p_NK: Tensor
    mass: float

    def save(self, file: Path) -> None:
        """Write it as one .npz file."""
        np.savez(
            file,
            ids_N=self.table.ids_N,
            weight_N=self.table.weight_N,
            offsets=self.table.offsets,
            words_NK=self.words_NK.numpy().astype(np.int32),
            log_p_NK=self.log_p_NK.numpy(),
        )


def load_reference(file: Path) -> BaseDistributions:
    """Read what `BaseDistributions.save` wrote.

    Raises:
        OutputError: the file is missing or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        ids, weight, offsets = (arrays[name] for name in ("ids_N", "weight_N", "offsets"))
        log_p = torch.from_numpy(arrays["log_p_NK"])
        words = torch.from_numpy(arrays["words_NK"].astype(np.int64))
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{file} is damaged ({error}); remove its folder") from None
    table = TokenTable.build(
        Encoded(ids[a:b], weight[a:b], f"general:{i + 1}")
        for i, (a, b) in enumerate(pairwise(offsets))
    )
    return BaseDistributions(table, words, log_p, float(log_p.exp().sum(1).mean()))


@torch.no_grad()
def reference(
    model: Any, table: TokenTable, batch_tokens: int, *, kept: int = LIKELIEST_WORDS
) -> BaseDistributions:
    """The base's distributions on these rows, in evaluation mode."""
    first_N = _first_of_row(table)
    total = int(first_N[-1])
    words_NK = log_p_NK = torch.empty(0)
    log_probs = log_probs_of(model)
    for batch in micro_batches(table, range(len(table)), batch_tokens):
        at_L = torch.from_numpy(_places(first_N, row_of(batch)))
        for part, log_p_CV in log_probs(batch.to(model.device)):
            top = log_p_CV.topk(min(kept, log_p_CV.shape[1]), dim=1)
            if not len(words_NK):
                width = top.values.shape[1]
                words_NK = torch.zeros(total, width, dtype=torch.long)
                log_p_NK = torch.zeros(total, width, dtype=top.values.dtype)
            words_NK[at_L[part]] = top.indices.cpu()
            log_p_NK[at_L[part]] = top.values.cpu()
    return BaseDistributions(table, words_NK, log_p_NK, float(log_p_NK.exp().sum(1).mean()))


@dataclass(frozen=True)
class Forgetting:
    """One model on the general rows; sums over each row's supervised tokens, in nats.

    Attributes:
        kl_S: of the base from this model.
        loss_S: negative log-likelihood of the rows.
        tokens_S: supervised tokens of each row.
    """

    kl_S: Floats
    loss_S: Floats
    tokens_S: Floats


@torch.no_grad()
def forgetting(model: Any, base: BaseDistributions, batch_tokens: int) -> Forgetting:
    """How far a model stands from the base, in evaluation mode."""
    rows = len(base.table)
    kl_S, loss_S, tokens_S = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    first_N = _first_of_row(base.table)
    log_probs = log_probs_of(model)
    for batch in micro_batches(base.table, range(rows), batch_tokens):
        moved, row_L = batch.to(model.device), row_of(batch)
        at_L = torch.from_numpy(_places(first_N, row_L))
        for part, log_q_CV in log_probs(moved):
            at = at_L[part]
            words = base.words_NK[at].to(model.device)
            kl = coarse_kl(base.log_p_NK[at].to(model.device), log_q_CV.gather(1, words))
            nats = -log_q_CV.gather(1, moved.labels_L[part, None])[:, 0]
            np.add.at(kl_S, row_L[part], kl.double().cpu().numpy())
            np.add.at(loss_S, row_L[part], nats.double().cpu().numpy())
        np.add.at(tokens_S, row_L, 1.0)
    return Forgetting(kl_S, loss_S, tokens_S)


def coarse_kl(log_p_CK: Tensor, log_q_CK: Tensor) -> Tensor:
    """KL in nats (C,) between distributions over K words and 'any other', in float64."""
    p, q = log_p_CK.double().exp(), log_q_CK.double().exp()
    rest_p, rest_q = (1.0 - p.sum(1)).clamp_min(0.0), (1.0 - q.sum(1)).clamp_min(1e-12)
    named = (p * (log_p_CK.double() - log_q_CK.double())).sum(1)
    # What rounding leaves of a sum that should be 1 is no word.
    other = torch.where(rest_p > 1e-6, rest_p * (rest_p.clamp_min(1e-12) / rest_q).log(), 0.0)
    return (named + other).clamp_min(0.0)


def _first_of_row(table: TokenTable) -> NDArray[np.int64]:
    """Where each row's supervised tokens begin among those of all rows, and their total."""
    counts = [int(row.weight[1:].sum()) for row in table]
    return np.cumsum([0, *counts]).astype(np.int64)


def _places(first_N: NDArray[np.int64], row_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place among all supervised tokens of each of a batch's, which lie row by row."""
    starts = np.flatnonzero(np.r_[True, row_L[1:] != row_L[:-1]])
    within = np.arange(len(row_L)) - np.repeat(starts, np.diff(np.r_[starts, len(row_L)]))
    return np.asarray(first_N[row_L] + within)
