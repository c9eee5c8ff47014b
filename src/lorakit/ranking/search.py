"""Ways to search for a rank, behind one interface. Pure: what is trained and measured, a Lab does.

bracket   the lowest and the highest rank side by side, then between them: see bracket.py.
heal      the highest rank, cut by SVD, each candidate trained on for a while, judged then.
nested    one run in which the rows of every step are dealt out among the prefixes of the
          highest rank (after DyLoRA, arXiv 2210.07558, and Matryoshka learning, arXiv
          2205.13147), judged at every prefix; the chosen one goes on alone.
halving   plain successive halving over the ranks (arXiv 1502.07943), for comparison.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lorakit.evaluation.crossed import CrossedInterval
from lorakit.ranking.choose import Measured, Undecided, state_of, suffices, widened

How = Literal["trained", "cut", "healed", "nested"]


@dataclass(frozen=True, order=True)
class Run:
    """A run from the start: its rank, learning rate and seed; ranks by module where they differ."""

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

    def train(self, runs: Sequence[Run], until: int) -> Mapping[Run, Measured]:
        """Take runs to this step of their schedule, from wherever they are, and measure them."""

    def cut(self, run: Run, ranks: Sequence[int]) -> Mapping[int, Measured]:
        """Cut a finished run's adapter to these ranks."""

    def heal(self, run: Run, ranks: Sequence[int], steps: int) -> Mapping[int, Measured]:
        """Train the cuts of `cut` for so many steps."""

    def nest(self, ranks: Sequence[int], rate: float, seed: int) -> Mapping[int, Measured]:
        """One run whose prefixes are all trained; measured at each."""

    def go_on(self, rank: int, rate: float, seed: int, steps: int) -> Measured:
        """Train a prefix of `nest` alone for so many steps."""


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

    def state(self, rank: Measured, reference: Measured) -> tuple[CrossedInterval, str]:
        """d, and where it stands to τ."""
        d = self.gap(rank, reference)
        return d, state_of(d, self.tolerance(reference.loss))

    def suffices(self, rank: Measured, reference: Measured) -> bool:
        """Whether the rank counts as good as the reference."""
        little = self.tolerance(reference.loss)
        return suffices(self.gap(rank, reference), little, self.undecided)


@dataclass(frozen=True)
class Evidence:
    """A rank, as it was measured: how it came to be, and after which share of a run."""

    rank: int
    how: How
    share: float
    measured: Measured


@dataclass
class Found:
    """What a search came to.

    Attributes:
        rank: its answer.
        reference: the rank that others were held against.
        how: how the adapter of the answer was made.
        gaps: d of the ranks that were compared.
        pair: the answer and the reference, measured after the same steps: what d of it rests on.
        evidence: all that was measured.
        steps_taken: the decisions, in words.
        tolerances: τ of ranks that were compared elsewhere in the run than the answer was.
    """

    rank: int
    reference: int
    how: How
    gaps: dict[int, CrossedInterval]
    pair: tuple[Measured, Measured]
    evidence: list[Evidence] = field(default_factory=list)
    steps_taken: list[str] = field(default_factory=list)
    tolerances: dict[int, float] = field(default_factory=dict)


def heal(
    lab: Lab,
    ranks: Sequence[int],
    rate: float,
    seed: int,
    judge: Judge,
    *,
    heal_share: float,
) -> Found:
    """One run at the highest rank, cut; bisection over the cuts, each healed and judged then.

    The highest is trained on for as long as its cuts are, so that steps do not pass for rank.
    """
    highest, run = ranks[-1], Run(ranks[-1], rate, seed)
    steps = max(1, math.ceil(heal_share * lab.steps))
    whole = lab.train([run], lab.steps)[run]
    evidence = [Evidence(highest, "trained", 1.0, whole)]
    cuts = lab.cut(run, ranks)
    evidence += [Evidence(rank, "cut", 1.0, point) for rank, point in cuts.items()]
    healed: dict[int, Measured] = {}
    gaps: dict[int, CrossedInterval] = {}
    said: list[str] = []

    def mend(wanted: Sequence[int]) -> None:
        new = [rank for rank in wanted if rank not in healed]
        for rank, point in lab.heal(run, new, steps).items() if new else ():
            healed[rank] = point
            evidence.append(Evidence(rank, "healed", 1 + heal_share, point))

    def enough(rank: int) -> bool:
        gaps[rank], state = judge.state(healed[rank], healed[highest])
        said.append(
            f"cut to rank {rank} and healed it is {gaps[rank].mean:+.4f} nats per token from rank "
            f"{highest} trained on as long: {state}"
        )
        return judge.suffices(healed[rank], healed[highest])

    mend([ranks[0], highest])
    low, high = 0, len(ranks) - 1
    if enough(ranks[0]):
        high = 0
    while high - low > 1:
        middle = (low + high) // 2
        mend([ranks[middle]])
        low, high = (low, middle) if enough(ranks[middle]) else (middle, high)
    answer = ranks[high]
    return Found(answer, highest, "healed", gaps, (healed[answer], healed[highest]), evidence, said)


def nested(
    lab: Lab,
    ranks: Sequence[int],
    rate: float,
    seed: int,
    judge: Judge,
    *,
    heal_share: float,
) -> Found:
    """One run for all prefixes; the smallest within τ of the best goes on alone."""
    steps = max(1, math.ceil(heal_share * lab.steps))
    points = lab.nest(ranks, rate, seed)
    best = min(points, key=lambda rank: (points[rank].loss, rank))
    evidence = [Evidence(rank, "nested", 1.0, point) for rank, point in points.items()]
    gaps: dict[int, CrossedInterval] = {}
    said, answer = [], best
    for rank in sorted(points, reverse=True):
        if rank == best:
            continue
        gaps[rank], state = judge.state(points[rank], points[best])
        said.append(f"prefix {rank}: {gaps[rank].mean:+.4f} from the best, {best}: {state}")
        if judge.suffices(points[rank], points[best]) and rank < answer:
            answer = rank
    alone = lab.go_on(answer, rate, seed, steps)
    evidence.append(Evidence(answer, "healed", 1 + heal_share, alone))
    said.append(f"prefix {answer} goes on alone for {steps} steps")
    return Found(answer, best, "healed", gaps, (points[answer], points[best]), evidence, said)


def halving(
    lab: Lab, ranks: Sequence[int], rate: float, seed: int, judge: Judge, *, first: float = 0.125
) -> Found:
    """All ranks for a short while, the better half on to twice the steps, to the end."""
    left, share = list(ranks), first
    evidence: list[Evidence] = []
    said: list[str] = []
    while True:
        runs = [Run(rank, rate, seed) for rank in left]
        points = {run.rank: p for run, p in lab.train(runs, step_at(lab, share)).items()}
        evidence += [Evidence(rank, "trained", share, point) for rank, point in points.items()]
        order = sorted(points, key=lambda rank: (points[rank].loss, rank))
        said.append(f"after {share:.0%} of the run, best first: {', '.join(map(str, order))}")
        if share >= 1:
            break
        share = min(1.0, 2 * share)
        left = sorted(order[: max(1 if share >= 1 else 2, len(order) // 2)])
    best = order[0]
    gaps = {r: judge.gap(points[r], points[best]) for r in order[1:]}
    return Found(best, best, "trained", gaps, (points[best], points[best]), evidence, said)


def step_at(lab: Lab, share: float) -> int:
    """The step that a share of a run ends with."""
    return max(1, math.ceil(share * lab.steps))
