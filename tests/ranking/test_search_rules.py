"""The searches over a lab of synthetic curves: what they find, and what they spend."""

import math

import numpy as np
import pytest

from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.alternatives.searches import PrefixContinued, halving, heal, nested
from lorakit.ranking.bracket import (
    AnswerFinished,
    BudgetReached,
    RankCompared,
    RankRuledOut,
    bracket,
)
from lorakit.ranking.choose import Judge, LossTolerance, paired_difference
from lorakit.ranking.trials import Candidate
from lorakit.ranking.wording import sentence

RANKS, STEPS, ROWS = (1, 2, 4, 8, 16, 32), 100, 200


def further(losses, behind):
    """The losses with so many nats per token more, of all rows or of each."""
    tokens = np.array(losses.tokens)
    return RowLosses(tuple(np.array(losses.nats) + behind * tokens), losses.tokens)


class Curves:
    """All ranks follow 1 + exp(-t) until a rank's capacity is used up, when it stays behind.

    `need` is the rank that suffices; a smaller rank r begins to fall behind after r / need of the
    run, and is behind by `worse` at the end.
    """

    steps = STEPS
    measuring = 0.0  # in `spent`, training alone

    def __init__(self, need, worse=0.2, healed=None, noise=0.001):
        self.need, self.worse, self.noise = need, worse, noise
        self.healed = need if healed is None else healed
        self.trained: dict[Candidate, int] = {}
        self.spent = 0.0

    def point(self, rank, step, need, seed):
        share = step / STEPS
        behind = 0.0
        if rank < need and share > rank / need:
            behind = self.worse * (share - rank / need) / (1 - rank / need)
        own = np.random.default_rng([rank, step, seed])
        hard = np.random.default_rng(5).gamma(2.0, 0.5, ROWS)
        tokens = np.full(ROWS, 10.0)
        loss = hard * (1 + np.exp(-3 * share)) + behind + self.noise * own.standard_normal(ROWS)
        return RowLosses(tuple(loss * tokens), tuple(tokens))

    def train(self, runs, until):
        for run in runs:
            assert self.trained.get(run, 0) <= until
            self.spent += (until - self.trained.get(run, 0)) / STEPS
            self.trained[run] = until
        return {run: self.point(run.rank, until, self.need, run.seed) for run in runs}

    def cut(self, run, ranks):
        assert self.trained[run] == STEPS
        return {rank: self.point(rank, STEPS, RANKS[-1], 0) for rank in ranks}

    def heal(self, run, ranks, steps):
        self.spent += len(ranks) * steps / STEPS
        return {rank: self.point(rank, STEPS, self.healed, 1) for rank in ranks}

    def nest(self, ranks, rate, seed):
        self.spent += 1
        return {rank: self.point(rank, STEPS, self.need, seed) for rank in ranks}

    def go_on(self, rank, rate, seed, steps):
        self.spent += steps / STEPS
        return self.point(rank, STEPS, self.need, seed)


class Wide(Curves):
    """Rank 1 is behind by `off` on the mean; row by row by half a nat more or less."""

    def __init__(self, off):
        super().__init__(need=1, noise=0.0)
        self.off = off

    def point(self, rank, step, need, seed):
        point = super().point(rank, step, need, seed)
        own = np.random.default_rng(3).standard_normal(ROWS)
        off = self.off + 0.5 * (own - own.mean()) if rank == 1 else 0.0
        return further(point, off)


TOLERANCE = LossTolerance(0.005, 0.04, 3, from_user=True)
JUDGE, CAREFUL = Judge(TOLERANCE), Judge(TOLERANCE, undecided="larger")
BRACKET = {"rungs": (0.25, 0.5, 0.75, 1.0), "decide_at": 0.5}


def last_compared(found, rank):
    """The share of the run after which a rank was compared last."""
    return [d.share for d in found.decisions if isinstance(d, RankCompared) and d.rank == rank][-1]


@pytest.mark.parametrize("need", RANKS)
def test_bracket_finds_the_rank_that_suffices(need):
    lab = Curves(need)
    found = bracket(lab, RANKS, 1e-3, 0, JUDGE, **BRACKET)
    # What falls behind after half of the run only is not seen where runs stop at half: a rank of
    # half the need is found then, which is what `decide_at` says it risks.
    assert found.choice.rank in (need, need // 2)
    sure = bracket(Curves(need), RANKS, 1e-3, 0, JUDGE, rungs=BRACKET["rungs"], decide_at=1.0)
    assert sure.choice.rank == need
    assert lab.trained[Candidate(found.choice.rank, 1e-3, 0)] == STEPS
    assert lab.spent <= 3.3


def test_where_ranks_are_alike_it_costs_one_and_a_half_runs():
    lab = Curves(need=1)
    found = bracket(lab, RANKS, 1e-3, 0, JUDGE, **BRACKET)
    assert found.choice.rank == 1
    assert lab.spent == pytest.approx(1.5)
    assert {run.rank for run in lab.trained} == {1, 32}
    gap = found.choice.gaps[1]
    # Seen last at half of the run, beside what rank 32 had come to there.
    assert gap.tolerance == 0.005 * lab.point(32, 50, 1, 0).loss
    assert gap.difference.high <= gap.tolerance


def test_what_is_open_goes_to_the_last_rung_and_there_it_is_settled():
    """Rows so noisy that no bound is within τ: what the estimate says, at the end and before."""
    for rungs, budget, spent in (
        (BRACKET["rungs"], 9.0, 2.0),
        ((0.25, 0.5), 9.0, 2.0),  # beyond the last rung, to the end of both
        ((0.25, 0.5), 1.9, 1.5),  # which the budget does not allow
    ):
        lab = Wide(off=0.0)
        found = bracket(lab, RANKS, 1e-3, 0, JUDGE, rungs=rungs, decide_at=0.5, budget=budget)
        gap, step = found.choice.gaps[1], 100 if spent == 2.0 else 50
        assert gap.tolerance == 0.005 * lab.point(32, step, 1, 0).loss
        assert gap.difference.low <= gap.tolerance < gap.difference.high
        assert (found.choice.rank, lab.spent) == (1, pytest.approx(spent))
        assert last_compared(found, 1) == step / STEPS
    (reached,) = [each for each in found.decisions if isinstance(each, BudgetReached)]
    assert (reached.rank, reached.share, reached.budget) == (1, 0.5, 1.9)
    assert "not compared later than after 50% of the run" in sentence(reached)
    # Behind by .02 of a loss of 1.2, as far as such rows tell: likelier too small than not.
    behind = bracket(Wide(off=0.02), RANKS, 1e-3, 0, JUDGE, **{**BRACKET, "budget": 2.0})
    assert behind.choice.gaps[1].state == "open"
    assert behind.choice.rank == 32
    assert bracket(Wide(off=0.0), RANKS, 1e-3, 0, CAREFUL, **BRACKET).choice.rank > 1


def test_a_rank_between_is_equivalent_no_sooner_than_the_lowest_was_decided():
    """1 is open at .4 and worse at .6. 2 is as the highest at .4, and at .6 it is not."""

    class Late(Wide):
        def point(self, rank, step, need, seed):
            make = super().point if step <= 40 else Curves(need=1, noise=0.0).point
            point = make(rank, step, need, seed)
            behind = 2 * max(0.0, step / STEPS - 0.5) if rank < 4 else 0.0
            return further(point, behind)

    found = bracket(Late(0.0), (1, 2, 4), 1e-3, 0, JUDGE, rungs=(0.4, 0.6), decide_at=0.4)
    assert [e.share for e in found.evidence if e.rank == 2] == [0.4, 0.6]
    assert found.choice.rank == 4


def test_measuring_counts_against_the_budget():
    """1 and 32 come to half of a run and are open; their end would be one run more and two measures."""

    class Dear(Wide):
        measuring = 0.1

    for budget, last in ((2.25, 1.0), (2.15, 0.5)):
        found = bracket(
            Dear(off=0.0), RANKS, 1e-3, 0, JUDGE, rungs=(0.5,), decide_at=0.5, budget=budget
        )
        assert last_compared(found, 1) == last


def test_a_rank_that_is_worse_early_is_stopped_early():
    lab = Curves(need=32, worse=3.0)
    found = bracket(lab, RANKS, 1e-3, 0, JUDGE, rungs=BRACKET["rungs"], decide_at=1.0)
    assert found.choice.rank == 32
    assert lab.trained[Candidate(1, 1e-3, 0)] == 25
    first = found.decisions[0]
    assert isinstance(first, RankCompared)
    assert (first.rank, first.share, first.gap.state) == (1, 0.25, "short")
    assert found.decisions[-1] == AnswerFinished(
        32, True, ((1, 0.25), (4, 0.25), (8, 0.5), (16, 0.75))
    )


def test_no_rank_counts_as_equivalent_before_the_share_that_decides():
    """`decide_at` lies between two rungs, and rank 1 is worse at the one before it."""
    found = bracket(
        Curves(need=8, worse=3.0), RANKS, 1e-3, 0, JUDGE, rungs=BRACKET["rungs"], decide_at=0.4
    )
    # Rank 2 falls behind from a quarter of the run on, 4 from half of it on, as at decide_at .5.
    assert found.choice.rank == 4
    compared = [each for each in found.decisions if isinstance(each, RankCompared)]
    assert (2, 0.5) in {(each.rank, each.share) for each in compared}


def test_where_runs_happen_to_be_counts_until_they_have_settled():
    """A rank behind by .03 of a loss of 1.5 at half a run, where seeds differ by twice as much."""

    class Astray(Curves):
        def point(self, rank, step, need, seed):
            point = super().point(rank, step, need, seed)
            off = 0.03 if rank == 1 and step <= 50 else 0.0
            return further(point, off)

    rungs = {"rungs": (0.5, 0.75), "decide_at": 0.5}
    hasty = bracket(Astray(need=1), RANKS, 1e-3, 0, JUDGE, **rungs)
    assert hasty.choice.rank > 1
    assert hasty.decisions[0].gap.state == "short"
    wary = Judge(TOLERANCE, unsettled=lambda step: 0.5 * (1 - step / STEPS))
    lab = Astray(need=1)
    found = bracket(lab, RANKS, 1e-3, 0, wary, **rungs, budget=1.9)
    assert found.choice.rank == 1
    assert found.decisions[0].gap.state == "open"
    assert sentence(found.decisions[0]).endswith("cannot be told; the search leaves it open")
    assert lab.spent == pytest.approx(1.75)
    assert last_compared(found, 1) == 0.75
    # √2 · .02 · .25 of the loss at .75 of the run, beside what the rows leave open.
    ours, theirs = lab.point(1, 75, 1, 0), lab.point(32, 75, 1, 0)
    d, rows = found.choice.gaps[1].difference, paired_difference(ours, theirs, 0.95)
    off = 1.645 * math.sqrt(2) * 0.04 * 0.25 * 0.5 * theirs.loss
    assert d.high - d.mean == pytest.approx(math.hypot(rows.high - rows.mean, off), rel=1e-3)


def test_what_would_cost_too_much_is_not_trained():
    """1 and 32 come to a quarter of a run, where 1 is worse; 4 would need another run and a quarter."""
    tight = {**BRACKET, "budget": 1.6}
    lab = Curves(need=8, worse=3.0)
    found = bracket(lab, RANKS, 1e-3, 0, JUDGE, **tight)
    assert (found.choice.rank, {run.rank for run in lab.trained}) == (32, {1, 32})
    assert found.decisions[-2] == BudgetReached(4, 0.0, pytest.approx(1.75), 1.6)
    assert "rank 4 is not trained: with it the search would cost 1.75 runs" in sentence(
        found.decisions[-2]
    )
    assert lab.spent == pytest.approx(1.25)
    enough = Curves(need=8, worse=3.0)
    assert bracket(enough, RANKS, 1e-3, 0, JUDGE, **{**BRACKET, "budget": 4}).choice.rank == 4
    assert enough.spent <= 4


class PowerLaw(Curves):
    """Rank r is behind the highest by c / r, from the beginning."""

    def __init__(self, c, beyond=0.0):
        super().__init__(need=1, noise=0.0)
        self.c, self.beyond = c, beyond

    def point(self, rank, step, need, seed):
        point = super().point(rank, step, need, seed)
        behind = 0.0 if rank == RANKS[-1] else self.c / rank - self.beyond
        return further(point, behind)


def test_the_budget_holds_for_the_answer_that_is_finished_too():
    """8 is enough at half of a run, and 4 is looked at later: then 8 has more of its run before it."""

    class Later(Curves):
        def point(self, rank, step, need, seed):
            point = Curves.point(self, rank, step, 1, seed)
            early = rank == 1 or (rank == 4 and step > 60)
            # 4 is open until .6 of the run.
            own = np.random.default_rng(3).standard_normal(ROWS)
            wide = 0.3 * (own - own.mean()) if rank == 4 and step <= 60 else 0.0
            return further(point, wide + (0.5 if early else 0.0))

    for budget in (2.0, 2.3, 2.5, 2.75, 3.0, 3.5):
        lab = Later(need=1, noise=0.0)
        bracket(lab, RANKS, 1e-3, 0, JUDGE, rungs=(0.3, 0.6, 0.9), decide_at=0.3, budget=budget)
        assert lab.spent <= budget + 1e-9


def test_a_rank_that_its_neighbours_rule_out_is_not_trained():
    """τ is .005 of a loss of about 1.2: 1 and 2 are behind by .02 and .01, 4 by .005."""
    lab = PowerLaw(0.02)
    found = bracket(lab, RANKS, 1e-3, 0, JUDGE, **BRACKET)
    assert found.choice.rank == 4
    assert {run.rank for run in lab.trained} == {1, 4, 32}
    (ruled_out,) = [each for each in found.decisions if isinstance(each, RankRuledOut)]
    assert (ruled_out.rank, ruled_out.lower, ruled_out.higher) == (2, 1, 4)
    # By the power law through c and c / 4, rank 2 is behind by c / 2.
    assert ruled_out.expected == pytest.approx(0.01, rel=1e-3)
    assert sentence(ruled_out).startswith("rank 2 is not trained")
    # Where the larger one is better than the highest there is no such law, and it is trained.
    better = PowerLaw(0.02, beyond=0.006)
    assert bracket(better, RANKS, 1e-3, 0, JUDGE, **BRACKET).choice.rank == 2
    assert {run.rank for run in better.trained} == {1, 2, 4, 32}


def test_a_law_needs_two_ranks_that_are_worse_than_the_highest():
    """Rank 1 is better on the mean, and open; `larger` does not take it, and goes on to 2."""

    class Uneven(Curves):
        def point(self, rank, step, need, seed):
            point = super().point(rank, step, need, seed)
            own = np.random.default_rng(3).standard_normal(ROWS)
            off = {1: 0.2 * (own - own.mean()) - 0.002, 4: 0.001}.get(rank, 0.0)
            return further(point, off)

    lab = Uneven(need=1, noise=0.0)
    found = bracket(lab, RANKS, 1e-3, 0, CAREFUL, **BRACKET)
    assert found.choice.gaps[1].difference.mean < 0 < found.choice.gaps[4].difference.mean
    assert found.choice.rank == 2
    assert Candidate(2, 1e-3, 0) in lab.trained


def test_runs_are_never_started_twice():
    """`Curves.train` refuses to go back; a run that goes on pays only for what is new."""
    lab = Curves(need=4)
    bracket(lab, RANKS, 1e-3, 0, JUDGE, **BRACKET)
    assert lab.spent == pytest.approx(sum(lab.trained.values()) / STEPS)


def test_heal_judges_healed_cuts_and_not_cuts():
    lab = Curves(need=1, healed=1)
    found = heal(lab, RANKS, 1e-3, 0, JUDGE, heal_share=0.2)
    assert found.choice.rank == 1  # though its cut is far off
    cuts = {e.rank: e.losses.loss for e in found.evidence if e.how == "cut"}
    assert cuts[1] > 1.05 * cuts[32]
    assert lab.spent == pytest.approx(1.4)
    assert heal(Curves(1, healed=8), RANKS, 1e-3, 0, JUDGE, heal_share=0.2).choice.rank == 8


def test_nested_takes_the_smallest_prefix_and_finishes_it():
    lab = Curves(need=8)
    found = nested(lab, RANKS, 1e-3, 0, JUDGE, heal_share=0.2)
    assert (found.choice.rank, found.how) == (8, "healed")
    assert lab.spent == pytest.approx(1.2)


def test_halving_drops_the_worse_half():
    lab = Curves(need=32, worse=3.0, noise=0.0)
    found = halving(lab, RANKS, 1e-3, 0, JUDGE)
    # It never looks back: 32, as good as 16 until then, fell out after a quarter of the run.
    assert found.choice.rank == 16
    assert sorted(lab.trained.values()) == [13, 13, 13, 25, 50, 100]


@pytest.mark.parametrize("need", RANKS)
@pytest.mark.parametrize(
    "search",
    [
        lambda lab: bracket(lab, RANKS, 1e-3, 0, JUDGE, **BRACKET),
        lambda lab: heal(lab, RANKS, 1e-3, 0, JUDGE, heal_share=0.2),
        lambda lab: nested(lab, RANKS, 1e-3, 0, JUDGE, heal_share=0.2),
        lambda lab: halving(lab, RANKS, 1e-3, 0, JUDGE),
    ],
    ids=["bracket", "heal", "nested", "halving"],
)
@pytest.mark.parametrize("noise", [0.001, 0.05])
def test_the_answer_is_the_rank_that_was_finished(search, need, noise):
    lab = Curves(need, noise=noise)
    found = search(lab)
    said = [d.rank for d in found.decisions if isinstance(d, AnswerFinished | PrefixContinued)]
    if said:  # bracket and nested
        finished = said[-1]
    elif found.how == "trained":  # halving, of which one rank comes to the end
        (finished,) = (run.rank for run, step in lab.trained.items() if step == STEPS)
    else:  # heal: the bisection ends where the smallest rank suffices that was healed
        gaps = found.choice.gaps
        finished = min([r for r in gaps if gaps[r].suffices("estimate")], default=RANKS[-1])
    assert found.choice.rank == finished
    (last,) = [e for e in found.evidence if (e.rank, e.how) == (finished, found.how)][-1:]
    assert found.losses is last.losses
