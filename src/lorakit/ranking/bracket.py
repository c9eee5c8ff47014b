"""The search that is the default: the lowest and the highest rank side by side, then between them.

Low ranks follow the common learning curve until their capacity is used up ("LoRA Without Regret",
Thinking Machines, 2025), so that paired curves on the same batches show early whether they separate. If
they do not, the lowest wins and the highest stops; if they do, the ranks between are bisected, each
from its start. Pure, like search.py: what is trained and measured, a Lab does.
"""

import math
from collections.abc import Mapping, Sequence

from lorakit.evaluation.crossed import CrossedInterval
from lorakit.ranking.choose import Measured, State
from lorakit.ranking.search import (
    AnswerFinished,
    BudgetReached,
    Candidate,
    Decision,
    Evidence,
    Judge,
    Lab,
    RankCompared,
    RankRuledOut,
    SearchResult,
    step_at,
)


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
        decide_at: share from which on a rank that is equivalent needs no later comparison.
        budget: what all may cost, in runs. The lowest and the highest are compared on every rung that
            they need in any case; their end, and whatever concerns a rank between, only if the
            budget reaches so far. What was left open for its sake `judge.undecided` decides; of
            ranks that were not compared, the next larger one that suffices is taken.
    """
    race = _Race(lab, ranks[-1], rate, seed, judge, rungs, decide_at, budget)
    lowest = ranks[0]
    decided = race.settle(lowest, always=True)
    if race.suffices(lowest):
        return race.finish(lowest)
    # A larger rank falls behind later than the lowest, and is not equivalent before that was seen.
    race.decide_at = max(decide_at, decided)
    tolerance = judge.tolerance(race.pairs[lowest][1].loss)
    low, high = 0, len(ranks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        expected = _between(race.gaps, ranks[low], ranks[middle], ranks[high])
        if expected is not None and expected > tolerance:
            race.decisions.append(
                RankRuledOut(ranks[middle], ranks[low], ranks[high], expected, tolerance)
            )
            low = middle
        elif not race.settle(ranks[middle]):
            break
        else:
            low, high = (low, middle) if race.suffices(ranks[middle]) else (middle, high)
    return race.finish(ranks[high])


class _Race:
    """Ranks against the highest, on the same batches: what was seen of them, and what was decided.

    Attributes:
        decide_at: see `bracket`.
        gaps, pairs: of each rank that was compared, d and what it rests on, as seen last.
        decisions: in their order.
    """

    def __init__(
        self,
        lab: Lab,
        highest: int,
        rate: float,
        seed: int,
        judge: Judge,
        rungs: Sequence[float],
        decide_at: float,
        budget: float,
    ) -> None:
        self._lab, self._highest, self._judge, self._budget = lab, highest, judge, budget
        self._rate, self._seed, self._rungs = rate, seed, tuple(rungs)
        self.decide_at = decide_at
        self._seen: dict[tuple[int, float], Measured] = {}
        self._evidence: list[Evidence] = []
        self.gaps: dict[int, CrossedInterval] = {}
        self.pairs: dict[int, tuple[Measured, Measured]] = {}
        self.decisions: list[Decision] = []

    def settle(self, rank: int, *, always: bool = False) -> float:
        """Compare a rank with the highest, later and later, until that decides or the budget is out.

        Args:
            rank: which.
            always: on all rungs, whatever they cost.

        Returns:
            the share after which it was last compared; 0 where it was not.
        """
        last, shares = 0.0, tuple(dict.fromkeys((*self._rungs, 1.0)))
        # Before this share nothing counts as equivalent: it has to be reached, or it is in vain.
        least = next(share for share in shares if share >= self.decide_at)
        for share in shares:
            required = always and share in self._rungs
            ahead = [each for each in shares if share <= each <= max(share, least)]
            if not required and not self._affords(rank, ahead, last):
                break
            self._train([rank, self._highest], share)
            last, state = share, self._compare(rank, share)
            if state == "worse" or (state == "equivalent" and share >= self.decide_at):
                break
        return last

    def suffices(self, rank: int) -> bool:
        """Whether a rank that was compared counts as good as the highest."""
        return self._judge.suffices(*self.pairs[rank])

    def finish(self, answer: int) -> SearchResult:
        """Train the answer to its end."""
        reached = {rank: self._reached(rank) for rank, _ in self._seen}
        self._train([answer], 1.0)
        end = self._seen[answer, 1.0]
        others = ((rank, share) for rank, share in sorted(reached.items()) if rank != answer)
        stopped = tuple((rank, share) for rank, share in others if share < 1)
        self.decisions.append(AnswerFinished(answer, reached[answer] < 1, stopped))
        return SearchResult(
            answer,
            self._highest,
            "trained",
            self.gaps,
            self.pairs.get(answer, (end, end)),
            self._evidence,
            self.decisions,
            {rank: self._judge.tolerance(theirs.loss) for rank, (_, theirs) in self.pairs.items()},
        )

    def _affords(self, rank: int, shares: Sequence[float], last: float) -> bool:
        """Whether the budget reaches so far: to compare after each, and then to finish one of both."""
        end = shares[-1]
        further = sum(max(0.0, end - self._reached(each)) for each in (rank, self._highest))
        measured = 2 * len(shares) + (end < 1)
        cost = self._lab.spent + further + (1 - end) + measured * self._lab.measuring
        if cost <= self._budget:
            return True
        self.decisions.append(BudgetReached(rank, last, cost, self._budget))
        return False

    def _reached(self, rank: int) -> float:
        return max((share for each, share in self._seen if each == rank), default=0.0)

    def _train(self, wanted: Sequence[int], share: float) -> None:
        new = [rank for rank in wanted if (rank, share) not in self._seen]
        candidates = [Candidate(rank, self._rate, self._seed) for rank in new]
        points = self._lab.train(candidates, step_at(self._lab, share)) if candidates else {}
        for candidate, point in points.items():
            self._seen[candidate.rank, share] = point
            self._evidence.append(Evidence(candidate.rank, "trained", share, point))

    def _compare(self, rank: int, share: float) -> State:
        ours, theirs = self._seen[rank, share], self._seen[self._highest, share]
        d, state = self._judge.state(ours, theirs)
        self.gaps[rank], self.pairs[rank] = d, (ours, theirs)
        self.decisions.append(RankCompared(rank, self._highest, "trained", share, d, state))
        return state


def _between(gaps: Mapping[int, CrossedInterval], low: int, middle: int, high: int) -> float | None:
    """d of a rank by a power law through a smaller one that does not suffice and a larger one that does.

    None where there is none: the larger is the reference, or one of both is no worse than that.
    """
    if low not in gaps or high not in gaps or min(gaps[low].mean, gaps[high].mean) <= 0:
        return None
    way = math.log(middle / low) / math.log(high / low)
    return gaps[low].mean ** (1 - way) * gaps[high].mean ** way
