"""Many adapters in one batch of tokens: y_t += s_a · B_a (A_a x_t), a the adapter of token t.

Adapters lie in slots of a fixed rank R: all A's of a slot under one another, all B's likewise, so
that neighbouring slots are one matrix. An adapter of rank r takes ceil(r / R) neighbouring slots,
the rest of its rows zero; s is folded into B. Tokens come sorted by slot, those of the base (which
have none) last. A *segment* is a run of tokens and the run of slots that its adapters lie in:

    H = X Aᵀ           (tokens, slots·R), one product for linears that share their input
    H = 0              wherever a row of H meets a slot that is not its own adapter's
    Y += H B           (tokens, slots·R) · (slots·R, out)

A token multiplies with slots that are not its own, which costs arithmetic and no memory traffic:
each A and B is read once, as in any other way, and a processor that waits for memory has the
arithmetic to spare. In return there is no gathering, no padding to equal numbers of tokens, and the
same three lines serve a prompt of one adapter (one slot, nothing to hide) and 32 tokens of 32
adapters (arXiv 2310.18547 and 2311.03285 write a kernel for the latter). How tokens are cut into
segments is planned once a step, by `plan_batch`, and used by every layer. Measured on two Sapphire
Rapids cores, 32 tokens, rank 16, the widths of SmolLM2-135M, microseconds a layer:

                        32 adapters    8 adapters    (the base's own linears: 534)
    bfloat16, so                760           300
    bfloat16, torch.bmm         800           310
    float32, torch.bmm          775           190

The oracle in the tests is a loop over tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SMOL_NUMBERS = 10_176
"""Numbers of A and B for each unit of rank in a block of SmolLM2-135M, which `Costs` speaks of."""


@dataclass(frozen=True)
class Run:
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


def costs(device: torch.device, dtype: torch.dtype, numbers: float, rank: int) -> Costs:
    """What segments cost on a device, roughly; only how tokens are cut depends on it.

    Args:
        device: where it is computed.
        dtype: of the slots.
        numbers: of A and B for each unit of rank in a block of the model.
        rank: R.
    """
    size = numbers * rank / (SMOL_NUMBERS * 16)
    if device.type != "cpu":
        return Costs(100.0, 1.0 * size, 0.01 * size)
    if dtype == torch.bfloat16:  # AMX: calls are dear, products are cheap
        return Costs(220.0, 16.0 * size, 0.3 * size)
    return Costs(55.0, 26.0 * size, 1.6 * size)


@dataclass(frozen=True, eq=False)
class Segment:
    """Tokens [first, last) and slots [low, high).

    `own`: (tokens, slots·R) bool, True where a token meets its own adapter; None where all do.
    """

    first: int
    last: int
    low: int
    high: int
    own: Tensor | None


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """How the tokens of a step are cut; `rows` counts all of them, the base's included."""

    rows: int
    segments: tuple[Segment, ...]
    slots: frozenset[int]


@lru_cache(maxsize=64)
def plan_batch(
    runs: tuple[Run, ...], rows: int, rank: int, device: torch.device, cost: Costs
) -> BatchPlan:
    """Cut the tokens of a step into segments of least cost.

    Steps that only decode repeat, and so does their plan: the last ones are remembered.

    Args:
        runs: of adapters, by ascending slot; their tokens come first in the step.
        rows: tokens of the step; those beyond the runs' are the base's.
        rank: R, of a slot.
        device: where the masks are needed.
        cost: see `costs`.

    Raises:
        ValueError: runs overlap, are out of order, or hold more tokens than there are.
    """
    starts = [0]
    for run in runs:
        starts.append(starts[-1] + run.rows)
    for one, other in zip(runs, runs[1:], strict=False):
        if one.slot + one.width > other.slot:
            raise ValueError(f"runs are out of order, or overlap: {one}, {other}")
    if starts[-1] > rows or any(run.rows < 1 or run.width < 1 for run in runs):
        raise ValueError(f"{runs} do not fit {rows} tokens")
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(runs) + 1):
        high = runs[end - 1].slot + runs[end - 1].width
        best.append(
            min(
                (
                    best[i][0]
                    + cost.segment
                    + (cost.slot + cost.product * (starts[end] - starts[i])) * (high - runs[i].slot),
                    i,
                )
                for i in range(end)
            )
        )
    segments, end = [], len(runs)
    while end:
        first = best[end][1]
        segments.append(_segment(runs[first:end], starts[first], rank, device))
        end = first
    taken = frozenset(s for run in runs for s in range(run.slot, run.slot + run.width))
    return BatchPlan(rows, tuple(segments[::-1]), taken)


def _segment(runs: Sequence[Run], first: int, rank: int, device: torch.device) -> Segment:
    low, high = runs[0].slot, runs[-1].slot + runs[-1].width
    rows = sum(run.rows for run in runs)
    own = None
    if len(runs) > 1:
        mask = torch.zeros(rows, high - low, rank, dtype=torch.bool)
        row = 0
        for run in runs:
            mask[row : row + run.rows, run.slot - low : run.slot - low + run.width] = True
            row += run.rows
        own = mask.view(rows, -1).to(device)
    return Segment(first, first + rows, low, high, own)


class SlotGroup:
    """The slots of linear layers that share their input: q, k and v, or gate and up, or one alone.

    Attributes:
        A: (slots, linears, R, in_features), zeros where nothing is written.
        B: of each linear (slots, R, out_features), s·B transposed.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        slots: int,
        rank: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.in_features, self.out_features, self.rank = in_features, tuple(out_features), rank
        shape = (slots, len(self.out_features), rank, in_features)
        self.A = torch.zeros(shape, dtype=dtype, device=device)
        self.B = tuple(
            torch.zeros(slots, rank, out, dtype=dtype, device=device) for out in out_features
        )
        # Slots with a pair for each linear: an adapter of q and v alone costs nothing elsewhere.
        self._filled: tuple[set[int], ...] = tuple(set() for _ in out_features)
        self._zero = torch.zeros((), dtype=dtype, device=device)

    def write(
        self, slot: int, width: int, linear: int, A: Tensor | None, B: Tensor | None, s: float
    ) -> None:
        """Put the pair of one linear into slots [slot, slot + width), or zeros without one.

        Args:
            slot: the first.
            width: how many; width · R is at least the rank.
            linear: which of the group's.
            A: (rank, in_features).
            B: (out_features, rank).
            s: the scale.

        Raises:
            ValueError: the shapes are others, or s·B is not finite in the slots' dtype.
        """
        mine_A, mine_B = self.A[slot : slot + width, linear], self.B[linear][slot : slot + width]
        places = range(slot, slot + width)
        if A is None or B is None:
            if not self._filled[linear].isdisjoint(places):
                mine_A.zero_()
                mine_B.zero_()
                self._filled[linear].difference_update(places)
            return
        r, out = A.shape[0], self.out_features[linear]
        if A.shape != (r, self.in_features) or B.shape != (out, r) or r > width * self.rank:
            raise ValueError(
                f"A is {tuple(A.shape)} and B {tuple(B.shape)}; {width} slots of rank {self.rank} "
                f"hold pairs of {out} x {self.in_features}"
            )
        for k in range(width):
            rows = slice(k * self.rank, min((k + 1) * self.rank, r))
            held = max(0, rows.stop - rows.start)
            if held:
                mine_A[k, :held] = A[rows]
                mine_B[k, :held] = B[:, rows].t().mul(s)
            mine_A[k, held:] = 0
            mine_B[k, held:] = 0
        self._filled[linear].update(places)

    def take(self, slot: int, other: "SlotGroup") -> None:
        """Copy all slots of another group of the same shapes to `slot` and those after it."""
        width = other.A.shape[0]
        self.A[slot : slot + width] = other.A
        for mine, theirs in zip(self.B, other.B, strict=True):
            mine[slot : slot + width] = theirs
        for mine_filled, theirs_filled in zip(self._filled, other._filled, strict=True):
            mine_filled.difference_update(range(slot, slot + width))
            mine_filled.update(slot + held for held in theirs_filled)

    def finite(self, slot: int, width: int) -> bool:
        """Whether all that these slots hold is finite: what is not would reach other tokens."""
        sums = [self.A[slot : slot + width].sum(dtype=torch.float32)]
        sums += [B[slot : slot + width].sum(dtype=torch.float32) for B in self.B]
        return math.isfinite(torch.stack(sums).abs().sum().item())

    def add(self, x_TI: Tensor, ys: Sequence[Tensor], plan: BatchPlan) -> None:
        """Add each token's s·B(A x) to the outputs of the linears, in place.

        Args:
            x_TI: the shared input, (T, in_features), in the order of the plan.
            ys: (T, out_features) of each linear; slices of a wider matrix will do.
            plan: of this step.

        Raises:
            ValueError: there are other tokens than were planned.
        """
        if x_TI.shape[0] != plan.rows:
            raise ValueError(f"{x_TI.shape[0]} tokens came, {plan.rows} were planned")
        wanted = [i for i, held in enumerate(self._filled) if not held.isdisjoint(plan.slots)]
        if not wanted:
            return
        linears = len(self.out_features)
        for each in plan.segments:
            tokens, slots = each.last - each.first, each.high - each.low
            A = self.A[each.low : each.high].view(-1, self.in_features)
            h = F.linear(x_TI[each.first : each.last], A).view(tokens, slots, linears, self.rank)
            for i in wanted:
                h_TK = h[:, :, i].reshape(tokens, -1)
                # Not a product with 0: what another adapter overflows to must not become NaN here.
                if each.own is not None:
                    h_TK = torch.where(each.own, h_TK, self._zero)
                B = self.B[i][each.low : each.high].view(-1, self.out_features[i])
                ys[i][each.first : each.last].addmm_(h_TK, B)
