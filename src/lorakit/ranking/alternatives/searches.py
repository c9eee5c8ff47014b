"""The searches heal, nested and halving. Pure: what is trained and measured, a lab does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.bracket import (
    Decision,
    Evidence,
    Lab,
    RankCompared,
    SearchResult,
    step_at,
)
from lorakit.ranking.choose import Gap, Judge, choose
from lorakit.ranking.trials import Candidate
from lorakit.ranking.wording import sentence


class CuttingLab(Lab, Protocol):
    """A lab that can make ranks of other ranks."""

    def cut(self, candidate: Candidate, ranks: Sequence[int]) -> Mapping[int, RowLosses]:
        """Cut a finished run's adapter to these ranks."""

    def heal(
        self, candidate: Candidate, ranks: Sequence[int], steps: int
    ) -> Mapping[int, RowLosses]:
        """Train the cuts of `cut` for so many steps."""

    def nest(self, ranks: Sequence[int], rate: float, seed: int) -> Mapping[int, RowLosses]:
        """One run whose prefixes are all trained; measured at each."""

    def go_on(self, rank: int, rate: float, seed: int, steps: int) -> RowLosses:
        """Train a prefix of `nest` alone for so many steps."""


@dataclass(frozen=True)
class PrefixContinued(Decision):
    """The chosen prefix goes on alone for so many steps."""

    rank: int
    steps: int


@dataclass(frozen=True)
class HalvingRound(Decision):
    """The ranks of a round, best first, after a share of the run."""

    share: float
    ranks: tuple[int, ...]


@sentence.register
def _(decision: PrefixContinued) -> str:
    return f"prefix {decision.rank} goes on alone for {decision.steps} steps"


@sentence.register
def _(decision: HalvingRound) -> str:
    ranks = ", ".join(map(str, decision.ranks))
    return f"after {decision.share:.0%} of the run, best first: {ranks}"


def heal(
    lab: CuttingLab,
    ranks: Sequence[int],
    rate: float,
    seed: int,
    judge: Judge,
    *,
    heal_share: float,
) -> SearchResult:
    """One run at the highest rank, cut; bisection over the cuts, each healed and compared then.

    The highest is trained on for as long as its cuts are, so that steps do not pass for rank.
    """
    highest, candidate = ranks[-1], Candidate(ranks[-1], rate, seed)
    steps = max(1, math.ceil(heal_share * lab.steps))
    whole = lab.train([candidate], lab.steps)[candidate]
    evidence = [Evidence(highest, "trained", 1.0, whole)]
    cuts = lab.cut(candidate, ranks)
    evidence += [Evidence(rank, "cut", 1.0, point) for rank, point in cuts.items()]
    healed: dict[int, RowLosses] = {}
    gaps: dict[int, Gap] = {}
    decisions: list[Decision] = []
    share = 1 + heal_share

    def train_on(wanted: Sequence[int]) -> None:
        new = [rank for rank in wanted if rank not in healed]
        for rank, point in lab.heal(candidate, new, steps).items() if new else ():
            healed[rank] = point
            evidence.append(Evidence(rank, "healed", share, point))

    def suffices(rank: int) -> bool:
        gaps[rank] = judge.compare(healed[rank], healed[highest], lab.steps)
        decisions.append(RankCompared(rank, highest, "healed", share, gaps[rank]))
        return gaps[rank].suffices(judge.undecided)

    train_on([ranks[0], highest])
    low, high = 0, len(ranks) - 1
    if suffices(ranks[0]):
        high = 0
    while high - low > 1:
        middle = (low + high) // 2
        train_on([ranks[middle]])
        low, high = (low, middle) if suffices(ranks[middle]) else (middle, high)
    tolerance = judge.tolerance.nats(healed[highest].loss)
    choice = choose(gaps, highest, tolerance, ranks, judge.undecided)
    return SearchResult(choice, "healed", tuple(evidence), tuple(decisions))


def nested(
    lab: CuttingLab,
    ranks: Sequence[int],
    rate: float,
    seed: int,
    judge: Judge,
    *,
    heal_share: float,
) -> SearchResult:
    """One run for all prefixes; the smallest that is enough beside the best goes on alone."""
    steps = max(1, math.ceil(heal_share * lab.steps))
    points = lab.nest(ranks, rate, seed)
    best = min(points, key=lambda rank: (points[rank].loss, rank))
    evidence = [Evidence(rank, "nested", 1.0, point) for rank, point in points.items()]
    gaps: dict[int, Gap] = {}
    decisions: list[Decision] = []
    answer = best
    for rank in sorted(points, reverse=True):
        if rank == best:
            continue
        gaps[rank] = judge.compare(points[rank], points[best], lab.steps)
        decisions.append(RankCompared(rank, best, "nested", 1.0, gaps[rank]))
        if gaps[rank].suffices(judge.undecided) and rank < answer:
            answer = rank
    alone = lab.go_on(answer, rate, seed, steps)
    evidence.append(Evidence(answer, "healed", 1 + heal_share, alone))
    decisions.append(PrefixContinued(answer, steps))
    tolerance = judge.tolerance.nats(points[best].loss)
    choice = choose(gaps, best, tolerance, ranks, judge.undecided)
    return SearchResult(choice, "healed", tuple(evidence), tuple(decisions))


def halving(
    lab: Lab, ranks: Sequence[int], rate: float, seed: int, judge: Judge, *, first: float = 0.125
) -> SearchResult:
    """All ranks for a short while, the better half on to twice the steps, to the end."""
    left, share = list(ranks), first
    evidence: list[Evidence] = []
    decisions: list[Decision] = []
    while True:
        candidates = [Candidate(rank, rate, seed) for rank in left]
        trained = lab.train(candidates, step_at(lab, share))
        points = {candidate.rank: point for candidate, point in trained.items()}
        evidence += [Evidence(rank, "trained", share, point) for rank, point in points.items()]
        order = sorted(points, key=lambda rank: (points[rank].loss, rank))
        decisions.append(HalvingRound(share, tuple(order)))
        if share >= 1:
            break
        share = min(1.0, 2 * share)
        left = sorted(order[: max(1 if share >= 1 else 2, len(order) // 2)])
    best = order[0]
    gaps = {rank: judge.compare(points[rank], points[best], lab.steps) for rank in order[1:]}
    tolerance = judge.tolerance.nats(points[best].loss)
    choice = choose(gaps, best, tolerance, ranks, judge.undecided)
    return SearchResult(choice, "trained", tuple(evidence), tuple(decisions))
