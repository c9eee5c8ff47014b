"""The order of steps where some rows are new and the others are rehearsed.

Rows that a model knows already need less of a run than those that are new to it, but without the
known ones it would forget them (experience replay, arXiv 1811.11682). So each new row is taken
`weight` times as often as each known one. Both kinds are spread evenly: every step has its share
of new rows, to a row.

    D = weight · new + known             slots of a round, in which every known row comes once
    ν(j) = round(j · weight · new / D)   new rows in the first j slots of the run

Slot j takes a new row where ν(j + 1) > ν(j), and a known one elsewhere; each kind comes in a seeded
order of its own, all of its rows before any comes again. What step k takes follows from (rows, weight,
batch_size, seed, k) alone.
"""
# ruff: noqa: N815  (the fields carry their shapes in their names)

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rehearsal:
    """Which of S rows are new, and how much more often each of them is taken.

    Attributes:
        new_S: bool (S,); some are true and some are not.
        weight: how many times as often a new row is taken as a known one, above 0.
    """

    new_S: NDArray[np.bool_]
    weight: float

    def __post_init__(self) -> None:
        if not 0 < int(self.new_S.sum()) < len(self.new_S) or not self.weight > 0:
            raise ValueError("a rehearsal needs new rows, known rows, and a weight above 0")

    @property
    def share(self) -> Fraction:
        """The part of the slots that new rows have."""
        new = Fraction(self.weight).limit_denominator(10_000) * int(self.new_S.sum())
        return new / (new + int((~self.new_S).sum()))

    def order(self, batch_size: int, seed: int) -> Callable[[int], tuple[int, ...]]:
        """The rows of any step; steps asked for in turn cost one draw for each pass over a kind.

        A step has `batch_size` rows, or S where there are fewer.
        """
        slots, share = min(batch_size, len(self.new_S)), self.share
        new = _Stream(np.flatnonzero(self.new_S), seed, 1)
        known = _Stream(np.flatnonzero(~self.new_S), seed, 2)

        def rows_of(step: int) -> tuple[int, ...]:
            first, last = step * slots, (step + 1) * slots
            low, high = _rounded(first * share), _rounded(last * share)
            return (*new.take(low, high), *known.take(first - low, last - high))

        return rows_of


class _Stream:
    """Rows in passes that are each a permutation of all of them, drawn as `lorakit.data.order` does."""

    def __init__(self, rows: NDArray[np.intp], seed: int, kind: int) -> None:
        self._rows, self._seed, self._kind = rows, seed, kind
        self._drawn, self._pass = rows[:0], -1

    def take(self, start: int, stop: int) -> list[int]:
        """The rows from the one of number `start` on, without the one of number `stop`."""
        return [self._row(at) for at in range(start, stop)]

    def _row(self, at: int) -> int:
        number, within = divmod(at, len(self._rows))
        if number != self._pass:
            entropy = np.random.SeedSequence([self._seed, number, self._kind])
            keys = np.random.PCG64(entropy).random_raw(len(self._rows))
            self._drawn, self._pass = self._rows[np.argsort(keys, kind="stable")], number
        return int(self._drawn[within])


def _rounded(value: Fraction) -> int:
    """To the nearest whole number, halves upwards: the same on every machine."""
    return int((2 * value + 1) // 2)
