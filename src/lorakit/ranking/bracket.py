"""What a search for a rank may ask for, decides and comes to; and the search that is the default.

The default trains the lowest and the highest rank side by side, then those between. Low ranks follow
the common learning curve until their capacity is used up ("LoRA Without Regret", Thinking Machines,
2025), so that paired curves on the same batches show early whether they separate. If they do not, the
lowest wins and the highest stops; if they do, the ranks between are bisected, each from its start.

Pure: what is trained and measured, a Lab does. The other searches, which docs/rank.md finds worse, are
in the package `alternatives`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.choose import Choice, Gap, Judge, choose
from lorakit.ranking.trials import Candidate

How = Literal["trained", "cut", "healed", "nested"]


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

    def train(self, candidates: Sequence[Candidate], until: int) -> Mapping[Candidate, RowLosses]:
        """Take candidates to this step of their schedule, from wherever they are, and measure them."""


def step_at(lab: Lab, share: float) -> int:
    """The step that a share of a run ends with."""
    return max(1, math.ceil(share * lab.steps))


@dataclass(frozen=True)
class Evidence:
    """A rank, as it was measured: how it came to be, and after which share of a run."""

    rank: int
    how: How
    share: float
    losses: RowLosses


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
    gap: Gap


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


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Attributes:
        choice: its answer, the gaps of the ranks that were compared, and their reference.
        how: how the adapter of the answer was made.
        evidence: all that was measured.
        decisions: what was decided, in order.
    """

    choice: Choice
    how: How
    evidence: tuple[Evidence, ...]
    decisions: tuple[Decision, ...]

    @property
    def losses(self) -> RowLosses:
        """The adapter of the answer, as it was measured last."""
        answer = (self.choice.rank, self.how)
        return [each.losses for each in self.evidence if (each.rank, each.how) == answer][-1]


def bracket(
    lab: Lab,
    ranks: Sequence[int],
    rate: float,
    seed: int,
    judge: Judge,
    *,
    rungs: Sequence[float],
    decide_at: float,
    budget: float = math.inf,
) -> SearchResult:
    """The lowest and the highest rank side by side; then between them, if they separate.

    Args:
        lab: trains and measures.
        ranks: candidates, rising.
        rate, seed: of every run.
        judge: compares two ranks.
        rungs: shares of a run at which they are compared, rising. What the last leaves open is
            compared at the end of both.
        decide_at: share from which on a rank that is enough needs no later comparison.
        budget: what all may cost, in runs. The lowest and the highest are compared on every rung that
            they need in any case, which `expenses` holds against it before anything is trained; their
            end, and whatever concerns a rank between, only if the budget reaches so far. What was left
            open for its sake `judge.undecided` decides; of ranks that were not compared, the next larger
            one that suffices is taken.
    """
    race = _Race(lab, ranks, rate, seed, judge, rungs, decide_at, budget)
    lowest = ranks[0]
    decided = race.settle(lowest, always=True)
    if race.gaps[lowest].suffices(judge.undecided):
        return race.finish(lowest)
    # A larger rank falls behind later than the lowest, and is not enough before that was seen.
    race.decide_at = max(decide_at, decided)
    tolerance = race.gaps[lowest].tolerance
    low, high = 0, len(ranks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        expected = _between(race.gaps, ranks[low], ranks[middle], ranks[high])
        if expected is not None and expected > tolerance:
            race.decisions.append(
                RankRuledOut(ranks[middle], ranks[low], ranks[high], expected, tolerance)
            )
            low = middle
        elif not race.settle(ranks[middle], answer=ranks[high]):
            break
        elif race.gaps[ranks[middle]].suffices(judge.undecided):
            high = middle
        else:
            low = middle
    return race.finish(ranks[high])


@dataclass
class _Race:
    """Ranks against the highest, on the same batches: what was seen of them, and what was decided.

    Attributes:
        lab, ranks, rate, seed, judge, rungs, decide_at, budget: see `bracket`.
        gaps: of each rank that was compared, as seen last.
        evidence, decisions: in their order.
        losses: by rank and share of a run.
    """

    lab: Lab
    ranks: Sequence[int]
    rate: float
    seed: int
    judge: Judge
    rungs: Sequence[float]
    decide_at: float
    budget: float
    gaps: dict[int, Gap] = field(default_factory=dict)
    evidence: list[Evidence] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    losses: dict[tuple[int, float], RowLosses] = field(default_factory=dict)

    @property
    def highest(self) -> int:
        """The rank that the others are held against."""
        return self.ranks[-1]

    def settle(self, rank: int, *, answer: int | None = None, always: bool = False) -> float:
        """Compare a rank with the highest, later and later, until that decides or the budget is out.

        Args:
            rank: which.
            answer: what is finished if this rank does not suffice; the highest by default.
            always: on all rungs, whatever they cost.

        Returns:
            the share after which it was last compared; 0 where it was not.
        """
        last, shares = 0.0, tuple(dict.fromkeys((*self.rungs, 1.0)))
        # Before this share nothing counts as enough: it has to be reached, or it is in vain.
        least = next(share for share in shares if share >= self.decide_at)
        for share in shares:
            required = always and share in self.rungs
            ahead = [each for each in shares if share <= each <= max(share, least)]
            if not required and not self._affords(rank, answer or self.highest, ahead, last):
                break
            self._train([rank, self.highest], share)
            step = step_at(self.lab, share)
            gap = self.judge.compare(
                self.losses[rank, share], self.losses[self.highest, share], step
            )
            self.gaps[rank], last = gap, share
            self.decisions.append(RankCompared(rank, self.highest, "trained", share, gap))
            if gap.state == "short" or (gap.state == "enough" and share >= self.decide_at):
                break
        return last

    def finish(self, answer: int) -> SearchResult:
        """Train the answer to its end."""
        reached = {rank: self._reached(rank) for rank, _ in self.losses}
        self._train([answer], 1.0)
        others = ((rank, share) for rank, share in sorted(reached.items()) if rank != answer)
        stopped = tuple((rank, share) for rank, share in others if share < 1)
        self.decisions.append(AnswerFinished(answer, reached[answer] < 1, stopped))
        if answer in self.gaps:
            tolerance = self.gaps[answer].tolerance
        else:
            tolerance = self.judge.tolerance.nats(self.losses[answer, 1.0].loss)
        undecided = self.judge.undecided
        choice = choose(self.gaps, self.highest, tolerance, self.ranks, undecided)
        return SearchResult(choice, "trained", tuple(self.evidence), tuple(self.decisions))

    def _affords(self, rank: int, answer: int, shares: Sequence[float], last: float) -> bool:
        """Whether the budget reaches so far: to compare after each, and then to finish the answer."""
        end = shares[-1]
        further = sum(max(0.0, end - self._reached(each)) for each in (rank, self.highest))
        # The rank itself, which then has come to `end`, or what is the answer until then.
        came = end if answer == self.highest else min(end, self._reached(answer))
        measured = 2 * len(shares) + (came < 1)
        cost = self.lab.spent + further + (1 - came) + measured * self.lab.measuring
        if cost <= self.budget:
            return True
        self.decisions.append(BudgetReached(rank, last, cost, self.budget))
        return False

    def _reached(self, rank: int) -> float:
        return max((share for each, share in self.losses if each == rank), default=0.0)

    def _train(self, ranks: Sequence[int], share: float) -> None:
        new = [rank for rank in ranks if (rank, share) not in self.losses]
        candidates = [Candidate(rank, self.rate, self.seed) for rank in new]
        trained = self.lab.train(candidates, step_at(self.lab, share)) if candidates else {}
        for candidate, rows in trained.items():
            self.losses[candidate.rank, share] = rows
            self.evidence.append(Evidence(candidate.rank, "trained", share, rows))


def _between(gaps: Mapping[int, Gap], low: int, middle: int, high: int) -> float | None:
    """d of a rank by a power law through a smaller one that does not suffice and a larger one that does.

    None where there is none: the larger is the reference, or one of both is no worse than that.
    """
    if low not in gaps or high not in gaps:
        return None
    below, above = gaps[low].difference.mean, gaps[high].difference.mean
    if min(below, above) <= 0:
        return None
    way = math.log(middle / low) / math.log(high / low)
    return below ** (1 - way) * above**way
