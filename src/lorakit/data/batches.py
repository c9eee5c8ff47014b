"""Rows of tokens -> the padding-free batches of a step, and the order of the steps.

A padding-free batch packs its sequences into one line of T tokens:

    rows      [a b c] [d e]
    ids_T      a b c   d e
    positions  0 1 2   0 1
    weight_T   0 w w   0 w      the loss mask; nothing predicts the first token of a sequence
    predict_L  0 1     3        the hidden state at t predicts the token at t + 1
"""
# ruff: noqa: N815  (the fields carry their shapes in their names)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lorakit.data.table import Encoded


@dataclass(frozen=True)
class Batch:
    """S packed sequences of T tokens in all, of which L are supervised.

    ids_T: int64 (T,). positions_T: int64 (T,), from 0 in every sequence. weight_T: float32 (T,),
    the loss mask: 1 where the token is supervised. lengths_S: tokens of each sequence. rows_S:
    the index of each sequence's row. factor_T: float32 (T,), of each token's loss in training: that
    of its row; None where all are 1.
    """

    ids_T: Tensor
    positions_T: Tensor
    weight_T: Tensor
    lengths_S: tuple[int, ...]
    rows_S: tuple[int, ...]
    factor_T: Tensor | None = None

    @cached_property
    def predict_L(self) -> Tensor:
        """Positions whose hidden state predicts a supervised token: int64 (L,), ascending.

        Never crosses into the next sequence, whose first token has weight 0.
        """
        return torch.nonzero(self.weight_T).flatten() - 1

    @cached_property
    def labels_L(self) -> Tensor:
        """The token to be predicted at each of `predict_L`: int64 (L,)."""
        return self.ids_T[self.predict_L + 1]

    @property
    def token_count(self) -> int:
        """L, the number of supervised tokens: the divisor of the loss."""
        return self.predict_L.numel()

    @cached_property
    def factor_L(self) -> Tensor | None:
        """The factor of each supervised token's loss in training: float32 (L,); None: all are 1."""
        return None if self.factor_T is None else self.factor_T[self.predict_L + 1]

    @cached_property
    def divisor(self) -> float:
        """What the step's summed loss is divided by in training: L, or the sum of the factors."""
        if self.factor_L is None:
            return self.token_count
        return float(self.factor_L.sum(dtype=torch.float64))

    @property
    def tokens(self) -> int:
        """T, every token the model reads."""
        return self.ids_T.numel()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = replace(
            self,
            ids_T=self.ids_T.to(device),
            positions_T=self.positions_T.to(device),
            weight_T=self.weight_T.to(device),
            factor_T=None if self.factor_T is None else self.factor_T.to(device),
        )
        # nonzero() on a GPU waits for it, because its result's size is unknown. Taking the indices
        # along spares every step that wait.
        moved.__dict__["predict_L"] = self.predict_L.to(device)
        moved.__dict__["divisor"] = self.divisor
        return moved


def micro_batches(
    encoded: Sequence[Encoded], rows: Sequence[int], batch_tokens: int
) -> list[Batch]:
    """Split one step's rows into batches of at most `batch_tokens` tokens.

    Every row is in exactly one batch. Rows are sorted by length, so that rows of similar length
    share a batch. A row longer than the budget gets a batch of its own. The same rows give the
    same batches, whatever their order in `rows`.

    encoded: a `TokenTable` or any sequence of `Encoded`.
    rows: indices into it. batch_tokens: tokens, at least 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1; it is {batch_tokens}")
    batches: list[Batch] = []
    items: list[tuple[int, Encoded]] = []
    tokens = 0
    for row, item in sorted(((r, encoded[r]) for r in rows), key=lambda p: (len(p[1].ids), p[0])):
        if items and tokens + len(item.ids) > batch_tokens:
            batches.append(_pack(items))
            items, tokens = [], 0
        items.append((row, item))
        tokens += len(item.ids)
    if items:
        batches.append(_pack(items))
    return batches


def _pack(items: list[tuple[int, Encoded]]) -> Batch:
    lengths = tuple(len(item.ids) for _, item in items)
    weight_T = np.concatenate([item.weight for _, item in items]).astype(np.float32)
    weight_T[np.cumsum((0, *lengths[:-1]))] = 0.0
    return Batch(
        ids_T=torch.from_numpy(np.concatenate([item.ids for _, item in items]).astype(np.int64)),
        positions_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        weight_T=torch.from_numpy(weight_T),
        lengths_S=lengths,
        rows_S=tuple(row for row, _ in items),
        factor_T=_factors(lengths, [item.factor for _, item in items]),
    )


def _factors(lengths: Sequence[int], factors: Sequence[float]) -> Tensor | None:
    """Each row's factor once for each of its tokens; None where all are 1."""
    if all(factor == 1.0 for factor in factors):
        return None
    return torch.from_numpy(np.repeat(np.array(factors, np.float32), lengths))


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches packed into one, in their order; `rows_S` holds the indices of each."""
    return Batch(
        ids_T=torch.cat([batch.ids_T for batch in batches]),
        positions_T=torch.cat([batch.positions_T for batch in batches]),
        weight_T=torch.cat([batch.weight_T for batch in batches]),
        lengths_S=tuple(length for batch in batches for length in batch.lengths_S),
        rows_S=tuple(row for batch in batches for row in batch.rows_S),
        factor_T=_joined_factors(batches),
    )


def _joined_factors(batches: Sequence[Batch]) -> Tensor | None:
    if all(batch.factor_T is None for batch in batches):
        return None
    parts = (torch.ones_like(b.weight_T) if b.factor_T is None else b.factor_T for b in batches)
    return torch.cat(list(parts))


def total_steps(
    n: int, batch_size: int, *, epochs: float | None = None, steps: int | None = None
) -> int:
    """How many steps `order` yields: `steps`, or ``ceil(epochs * ceil(n / batch_size))``."""
    if (epochs is None) == (steps is None):
        raise ValueError("give either epochs or steps")
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1; they are {n} and {batch_size}")
    if steps is not None:
        return steps
    assert epochs is not None
    return math.ceil(epochs * math.ceil(n / batch_size))


def order(
    n: int,
    batch_size: int,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int,
    start_step: int = 0,
) -> Iterator[tuple[int, ...]]:
    """The row indices of each step, from `start_step` on.

    Each epoch is its own permutation of the n rows; its last step holds what is left over and may
    be smaller. Step k depends on (n, batch_size, seed, k) alone, so a resumed run starts at any
    step without replaying the ones before.

    The permutation sorts the rows by 64 raw bits of numpy's PCG64 seeded with (seed, epoch). Raw
    bits, because numpy keeps that stream the same for ever and its `permutation` only for a while.
    """
    total = total_steps(n, batch_size, epochs=epochs, steps=steps)
    per_epoch = math.ceil(n / batch_size)
    rows, drawn_for = np.empty(0, np.int64), -1
    for step in range(start_step, total):
        epoch, k = divmod(step, per_epoch)
        if epoch != drawn_for:
            keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
            rows, drawn_for = np.argsort(keys, kind="stable"), epoch
        yield tuple(rows[k * batch_size : (k + 1) * batch_size].tolist())
