"""What a search for a rank may ask for, by which rule ranks are compared, and what it comes to.

Pure: what is trained and measured, a Lab does. The search that is the default is in bracket.py; the
others, which docs/rank.md finds worse, are in the package `alternatives`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lorakit.evaluation.crossed import CrossedInterval
from lorakit.ranking.choose import Measured, State, Undecided, state_of, suffices, widened

How = Literal["trained", "cut", "healed", "nested"]


@dataclass(frozen=True, order=True)
class Candidate:
    """A run from its initialisation: rank, learning rate and seed; ranks by module where they differ."""

    rank: int
    rate: float
    seed: int = 0
    pattern: tuple[tuple[str, int], ...] = ()


class Lab(Protocol):
    """What a search may ask for. Whatever is asked for twice is done once."""

    @property
    def steps(self) -> int:
        """Steps of a whole run."""

    @property
    def spent(self) -> float:
        """What all has cost so far, in runs at the highest rank."""

    @property
    def measuring(self) -> float:
        """What it costs to measure a run on all held-out rows, in the same unit."""

    def train(self, candidates: Sequence[Candidate], until: int) -> Mapping[Candidate, Measured]:
        """Take candidates to this step of their schedule, from wherever they are, and measure them."""


@dataclass(frozen=True)
class Judge:
    """The rule by which two measured ranks are compared.

    Attributes:
        rows: d of a rank and a reference, with the bounds that the rows give.
        tolerance: τ in nats per token beside a loss.
        undecided: what decides where the rows do not.
        unsettled: by how much a run may be off after so many steps, as a share of its loss: the
            standard deviation over seeds. Two runs are off by √2 times as much.
    """

    rows: Callable[[Measured, Measured], CrossedInterval]
    tolerance: Callable[[float], float]
    undecided: Undecided = "estimate"
    unsettled: Callable[[int], float] = lambda step: 0.0

    def gap(self, rank: Measured, reference: Measured) -> CrossedInterval:
        """d, with bounds for both chances: which rows there were, and where the runs happened to be."""
        off = math.sqrt(2) * self.unsettled(rank.step) * reference.loss
        return widened(self.rows(rank, reference), off)

    def state(self, rank: Measured, reference: Measured) -> tuple[CrossedInterval, State]:
        """d, and where it stands to τ."""
        d = self.gap(rank, reference)
        return d, state_of(d, self.tolerance(reference.loss))

    def suffices(self, rank: Measured, reference: Measured) -> bool:
        """Whether the rank counts as good as the reference."""
        tolerance = self.tolerance(reference.loss)
        return suffices(self.gap(rank, reference), tolerance, self.undecided)


@dataclass(frozen=True)
class Evidence:
    """A rank, as it was measured: how it came to be, and after which share of a run."""

    rank: int
    how: How
    share: float
    measured: Measured


@dataclass(frozen=True)
class Decision:
    """What a search decided, as values; `wording.sentence` says each kind in words."""


@dataclass(frozen=True)
class RankCompared(Decision):
    """A rank was compared with the reference, both made in the same way, after a share of a run."""

    rank: int
    reference: int
    how: How
    share: float
    difference: CrossedInterval
    state: State


@dataclass(frozen=True)
class RankRuledOut(Decision):
    """A rank is not trained: a power law through two others puts it above the tolerance."""

    rank: int
    lower: int
    higher: int
    expected: float
    tolerance: float


@dataclass(frozen=True)
class BudgetReached(Decision):
    """A rank is not compared later than after a share of the run, or not at all where that is 0."""

    rank: int
    share: float
    cost: float
    budget: float


@dataclass(frozen=True)
class AnswerFinished(Decision):
    """The answer has its whole run; ranks that stopped before it, with the share of each.

    Attributes:
        rank: the answer.
        resumed: whether it had stopped too, and went on.
        stopped: of the others.
    """

    rank: int
    resumed: bool
    stopped: tuple[tuple[int, float], ...]


@dataclass
class SearchResult:
    """What a search came to.

    Attributes:
        rank: its answer.
        reference: the rank that others were held against.
        how: how the adapter of the answer was made.
        gaps: d of the ranks that were compared.
        pair: the answer and the reference, measured after the same steps: what d of it rests on.
        evidence: all that was measured.
        decisions: what was decided, in order.
        tolerances: τ of ranks that were compared elsewhere in the run than the answer was.
    """

    rank: int
    reference: int
    how: How
    gaps: dict[int, CrossedInterval]
    pair: tuple[Measured, Measured]
    evidence: list[Evidence] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    tolerances: dict[int, float] = field(default_factory=dict)

    @property
    def measured(self) -> Measured:
        """The adapter of the answer, as it was measured last."""
        return [e.measured for e in self.evidence if (e.rank, e.how) == (self.rank, self.how)][-1]


def step_at(lab: Lab, share: float) -> int:
    """The step that a share of a run ends with."""
    return max(1, math.ceil(share * lab.steps))
