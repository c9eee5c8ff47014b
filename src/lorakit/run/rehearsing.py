"""The rows of a run that are new to the adapter it goes on from: which they are, and how often they are taken.

The others are rehearsed: the parent knows them, and would forget them without. With `new_row_weight: auto`
both kinds are taken in proportion to the square roots of their numbers, as languages of very different sizes
are in multilingual training (temperature 2, arXiv 1907.05019). On 24 new among 216 rows of BANKING77 that is a
quarter of every step for new rows; with a third of it an adapter lost more on the known rows than it gained on the
new ones. Two bounds keep single rows from being taken without end.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.adapters.trained_rows import TrainedRows
from lorakit.data.rehearsal import Rehearsal
from lorakit.errors import ConfigError
from lorakit.run.fitting import Orders
from lorakit.training import TrainSpec

MOST_TIMES = 8
"""The largest weight that 'auto' gives."""
MOST_PASSES = 4
"""Passes over the new rows in the whole run: by 'auto' a weight above 1 leads to no more."""


@dataclass(frozen=True)
class Rehearsing:
    """What the adapter that a run goes on from knows of the run's rows.

    Attributes:
        rehearsal: how new and known rows are taken; None where all are taken alike.
        new: rows that are new to it; None where that cannot be told.
        rows: of the run.
        notes: sentences for the user.
        trained: the rows that the parent was trained on; None where it records none.
    """

    rehearsal: Rehearsal | None = None
    new: int | None = None
    rows: int = 0
    notes: tuple[str, ...] = ()
    trained: TrainedRows | None = None

    @property
    def weight(self) -> float:
        """How many times as often a new row is taken as a known one."""
        return self.rehearsal.weight if self.rehearsal else 1.0

    def to_dict(self) -> dict[str, Any] | None:
        """As result.json has it; None where nothing is known."""
        if self.new is None:
            return None
        return {"new": self.new, "rows": self.rows, "weight": self.weight}


def check_new_row_weight(spec: TrainSpec, *, going_on: bool) -> None:
    """Refuse a weight where nothing is gone on from.

    Raises:
        ConfigError: a weight is given.
    """
    if spec.new_row_weight != "auto" and not going_on:
        raise ConfigError(
            f"new_row_weight is {spec.new_row_weight:g}, and it is for rows that are new to an adapter "
            "that a run goes on from: name one with --from, or leave new_row_weight out"
        )


def rehearse(
    trained: TrainedRows | None, hashes_S: NDArray[np.uint32], steps: int, spec: TrainSpec
) -> Rehearsing:
    """Settle how often the rows of a run are taken.

    Args:
        trained: the rows that the parent was trained on; None where it records none.
        hashes_S: of the run's rows.
        steps: of the run.
        spec: with `new_row_weight`.
    """
    asked, rows = spec.new_row_weight, len(hashes_S)
    if trained is None or not trained.are_known:
        why = (
            "the adapter that this run goes on from records no rows"
            if trained is None
            else f"the adapter was trained on {trained.rows:,} rows, more than it keeps a record of"
        )
        if trained is None and asked == "auto":
            return Rehearsing(rows=rows)
        alike = f"all rows are taken alike: {why}"
        return Rehearsing(rows=rows, notes=(alike,), trained=trained)
    new_S = trained.new(hashes_S)
    new = int(new_S.sum())
    if new in (0, rows):
        notes = () if asked == "auto" else (_no_effect(asked, new, rows),)
        return Rehearsing(None, new, rows, notes, trained)
    weight = auto_weight(new, rows, steps, spec.batch_size) if asked == "auto" else float(asked)
    if weight == 1:
        alike = f"{_said(new, rows)}; all rows are taken alike"
        return Rehearsing(None, new, rows, (alike,), trained)
    note = (
        f"{_said(new, rows)}: each is taken {weight:g} times as often as each of the others "
        "(--new-row-weight 1 takes all alike)"
    )
    return Rehearsing(Rehearsal(new_S, weight), new, rows, (note,), trained)


def auto_weight(new: int, rows: int, steps: int, batch_size: int) -> float:
    """√(known rows / new rows) within the bounds, to one decimal; 1 where there are more new rows.

    Args:
        new: rows that are new, of `rows`.
        rows: of the run.
        steps: of the run.
        batch_size: rows of a step.

    >>> auto_weight(24, 216, 14, 8), auto_weight(24, 216, 1_000, 8), auto_weight(100, 150, 10, 8)
    (2.8, 1.0, 1.0)
    """
    known, slots = rows - new, steps * min(batch_size, rows)
    weight = min(MOST_TIMES, math.sqrt(known / new))
    # Passes are slots · weight / (weight · new + known).
    if slots > MOST_PASSES * new:
        weight = min(weight, MOST_PASSES * known / (slots - MOST_PASSES * new))
    return max(1.0, math.floor(10 * weight + 1e-6) / 10)


def known_rows(trained: TrainedRows | None, held_out_S: NDArray[np.uint32]) -> tuple[str, ...]:
    """A sentence where held-out rows are among those that the parent was trained on.

    Args:
        trained: the rows that the parent was trained on; None where it records none.
        held_out_S: hashes of the run's held-out rows.
    """
    if trained is None or not trained.are_known or not len(held_out_S):
        return ()
    known, rows = int((~trained.new(held_out_S)).sum()), len(held_out_S)
    if not known:
        return ()
    return (
        f"the parent was trained on {known:,} of the {rows:,} held-out rows: there it is better than on "
        "rows that it has not seen, so that the comparison favours it",
    )


def trained_after(
    before: TrainedRows | None, hashes_S: NDArray[np.uint32], orders: Orders, kept: int
) -> TrainedRows | None:
    """The rows that an adapter has been trained on after `kept` steps; None for none that is known.

    Args:
        before: of what the run went on from.
        hashes_S: of the run's rows.
        orders: the rows of any step.
        kept: steps that led to the parameters that were kept.
    """
    taken = set[int]()
    for step in range(kept):
        taken.update(orders(step))
        if len(taken) == len(hashes_S):
            break
    if not taken:
        return before
    rows = TrainedRows.of(hashes_S[sorted(taken)])
    return rows if before is None else before | rows


def _said(new: int, rows: int) -> str:
    return f"{new:,} of {rows:,} rows {'is' if new == 1 else 'are'} new to the parent"


def _no_effect(asked: float, new: int, rows: int) -> str:
    what = "all rows are new to the parent" if new else "no row is new to the parent"
    return f"new_row_weight {asked:g} has no effect: {what}"
