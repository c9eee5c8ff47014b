"""How the tokens of a step are cut into segments, of least cost. Pure; slots.py says what for.

Legend: R rank of a slot, n adapters of a segment, m tokens for each of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

SMOL_ELEMENTS = 10_176
"""Numbers of A and B for each unit of rank in a block of SmolLM2-135M, which `costs` starts from."""


@dataclass(frozen=True)
class SlotRun:
    """Consecutive tokens of one adapter: `rows` of them, its slots [slot, slot + width)."""

    slot: int
    width: int
    rows: int


@dataclass(frozen=True)
class Costs:
    """Microseconds a block: of a segment, of reading a slot, of a token meeting a slot."""

    segment: float
    slot: float
    product: float


def costs(device: torch.device, dtype: torch.dtype, elements: float, rank: int) -> Costs:
    """What segments cost on a device, roughly; only how tokens are cut depends on it.

    Args:
        device: where it is computed.
        dtype: of the slots.
        elements: of A and B for each unit of rank in a block of the model.
        rank: R.
    """
    size = elements * rank / (SMOL_ELEMENTS * 16)
    if device.type != "cpu":
        return Costs(100.0, 1.0 * size, 0.01 * size)
    if dtype == torch.bfloat16:  # AMX: calls are dear, products are cheap
        return Costs(350.0, 25.0 * size, 0.3 * size)
    return Costs(200.0, 30.0 * size, 1.6 * size)


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows [low, high) of adapters of one width, m tokens for each.

    `take` (n·m,): the step's token at each place, padding included; None where they are the tokens
    [first, first + n·m) in order. `tokens` (k,), `places` (k,): the real ones, and where they stand.
    """

    width: int
    low: int
    high: int
    tokens_each: int
    first: int
    take: Tensor | None
    tokens: Tensor | None
    places: Tensor | None


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """How the tokens of a step are cut; `rows` counts all of them, the base's included.

    `runs`: of adapters, as they were planned. `kept`: the plan of the tokens whose logits are wanted,
    for the output head; None where nobody said. `table`: the runs on the CPU, (runs, 4) int64: slot,
    width, first token, tokens.
    """

    rows: int
    segments: tuple[Segment, ...]
    slots: frozenset[int]
    runs: tuple[SlotRun, ...] = ()
    kept: "BatchPlan | None" = None
    table: Tensor | None = None


def runs_of(runs: Sequence[SlotRun], keep: Sequence[int]) -> tuple[SlotRun, ...]:
    """The same runs over some of a step's tokens alone.

    Args:
        runs: of all tokens.
        keep: indices of tokens, ascending.

    >>> runs_of([SlotRun(0, 1, 3), SlotRun(4, 1, 2)], [0, 2, 5, 6])
    (SlotRun(slot=0, width=1, rows=2),)
    """
    some, first = [], 0
    for run in runs:
        last = first + run.rows
        rows = bisect_left(keep, last) - bisect_left(keep, first)
        if rows:
            some.append(replace(run, rows=rows))
        first = last
    return tuple(some)


@dataclass(frozen=True)
class _Member:
    """A run: which row of adapters of its width, its first token, how many."""

    row: int
    first: int
    count: int


@lru_cache(maxsize=64)
def plan_batch(
    runs: tuple[SlotRun, ...], rows: int, device: torch.device, cost: Costs
) -> BatchPlan:
    """Cut the tokens of a step into segments of least cost.

    Steps that only decode repeat, and so does their plan: the last ones are remembered.

    Args:
        runs: of adapters, by ascending slot; their tokens come first in the step.
        rows: tokens of the step; those beyond the runs' are the base's.
        device: where the indices are needed.
        cost: see `costs`.

    Raises:
        ValueError: runs overlap, are out of order or at no multiple of their width, or hold more
            tokens than there are.
    """
    by_width: dict[int, list[_Member]] = {}
    token = free = 0
    table = list[tuple[int, int, int, int]]()
    for run in runs:
        if run.slot < free or run.rows < 1 or run.width < 1 or run.slot % run.width:
            raise ValueError(f"runs overlap, are out of order or misplaced: {run} in {runs}")
        by_width.setdefault(run.width, []).append(_Member(run.slot // run.width, token, run.rows))
        table.append((run.slot, run.width, token, run.rows))
        token, free = token + run.rows, run.slot + run.width
    if token > rows:
        raise ValueError(f"the runs hold {token} tokens, and there are {rows}")
    segments = [
        _segment(part, width, device)
        for width, members in sorted(by_width.items())
        for part in _cut(members, width, cost)
    ]
    taken = frozenset(s for run in runs for s in range(run.slot, run.slot + run.width))
    return BatchPlan(rows, tuple(segments), taken, runs, table=torch.tensor(table))


def _cut(members: list[_Member], width: int, cost: Costs) -> list[list[_Member]]:
    """Cut adapters into runs of rows so that Σ segment + slots·(slot + m·product) is least."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(members) + 1):
        most, options = 0, []
        for i in reversed(range(end)):
            most = max(most, members[i].count)
            slots = (members[end - 1].row - members[i].row + 1) * width
            options.append(
                (best[i][0] + cost.segment + slots * (cost.slot + most * cost.product), i)
            )
        best.append(min(options))
    parts, end = [], len(members)
    while end:
        parts.append(members[best[end][1] : end])
        end = best[end][1]
    return parts[::-1]


def _segment(members: list[_Member], width: int, device: torch.device) -> Segment:
    low, high = members[0].row, members[-1].row + 1
    most, first = max(m.count for m in members), members[0].first
    take = [first] * ((high - low) * most)
    tokens, places = [], []
    for member in members:
        for k in range(member.count):
            tokens.append(member.first + k)
            places.append((member.row - low) * most + k)
            take[places[-1]] = tokens[-1]
    if take == list(range(first, first + len(take))) and len(tokens) == len(take):
        return Segment(width, low, high, most, first, None, None, None)
    where = [torch.tensor(index, device=device) for index in (take, tokens, places)]
    return Segment(width, low, high, most, first, *where)
