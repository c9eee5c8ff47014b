"""From losses to an answer: losses whose answer is known."""

import numpy as np
import pytest

from lorakit.errors import ConfigError
from lorakit.evaluation.crossed import CrossedInterval
from lorakit.evaluation.verdict import Verdict
from lorakit.experiments.measuring import RowLosses
from lorakit.ranking import wording
from lorakit.ranking.checks import (
    Grid,
    GridPoint,
    Layered,
    Scored,
    Verified,
    _beside_best,
    allot,
)
from lorakit.ranking.choose import (
    Gap,
    Judge,
    LossTolerance,
    choose,
    paired_difference,
    tolerance_of,
)
from lorakit.ranking.inspect import rank_for_energy
from lorakit.ranking.probing import RateChoice, rate_effect
from lorakit.ranking.spec import RankSpec

ROWS = 300


def measured(excess, *, noise=0.002, seed=0):
    """Rows of unlike length and difficulty, all this much above 1 nat, with noise of their own."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    tokens = shared.integers(5, 40, ROWS).astype(float)
    hard = shared.gamma(2.0, 0.5, ROWS)
    nats = tokens * (hard + excess + noise * own.standard_normal(ROWS))
    return RowLosses(tuple(nats), tuple(tokens))


def gaps(excesses, tolerance=0.005, *, seed_noise=0.0, **options):
    """Of ranks 1, 2, 4, … against the last, at a tolerance and a margin in nats per token."""
    ranks = [2**i for i in range(len(excesses))]
    points = [measured(e, seed=i, **options) for i, e in enumerate(excesses)]
    loss = points[-1].loss
    judge = Judge(LossTolerance(tolerance / loss, seed_noise / loss, 3, from_user=True))
    return {
        rank: judge.compare(point, points[-1], 1)
        for rank, point in zip(ranks[:-1], points[:-1], strict=True)
    }, ranks[-1]


@pytest.mark.parametrize(
    ("excesses", "rank", "kind"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1, "lowest"),
        ([0.05, 0.02, 0.0, 0.0], 4, "needed"),
        ([0.05, 0.0, 0.0, 0.0], 2, "needed"),
        ([0.30, 0.2, 0.1, 0.0], 8, "unsaturated"),
        # A small rank may be better than the largest.
        ([-0.02, 0.0, 0.0, 0.0], 1, "lowest"),
    ],
)
def test_known_curves_have_their_known_answer(excesses, rank, kind):
    found, reference = gaps(excesses)
    choice = choose(found, reference, 0.005, (1, 2, 4, 8))
    assert (choice.rank, choice.kind) == (rank, kind)
    assert str(rank) in wording.choice(choice)
    assert ("Raise --max-rank" in wording.choice(choice)) == (kind == "unsaturated")


def test_what_rows_cannot_tell_is_said():
    """Rank 1 is within τ by its mean; with so much noise its upper bound is not."""
    found, reference = gaps([0.002, 0.0], noise=0.3)
    d = found[1].difference
    assert d.mean < 0.005 < d.high
    assert d.low < 0.005
    by_mean = choose(found, reference, 0.005, (1, 2))
    assert by_mean.rank == 1
    assert "better or worse than rank 2 cannot be told" in wording.choice(by_mean)
    assert "more held-out rows (--eval-data" in wording.choice(by_mean)
    assert 0.5 < by_mean.confidence < 0.95
    careful = choose(found, reference, 0.005, (1, 2), undecided="larger")
    assert (careful.rank, careful.confidence) == (2, None)
    assert "Whether rank 1 is better or worse than rank 2 cannot be told" in wording.choice(careful)
    assert careful.kind == "needed"  # and not "unsaturated", which nobody has seen


@pytest.mark.parametrize(
    ("excess", "seed_noise", "word", "words"),
    [
        (0.0, 0.0001, "equal", "Rank 1 and rank 2 are equal within the margin of 0.005"),
        (0.05, 0.002, "worse", "Rank 1 is worse, by more than the margin, than rank 2"),
        (-0.05, 0.002, "better", "Rank 1 is better, by more than the margin, than rank 2"),
        # The same rows, and seeds that differ by as much as the ranks do.
        (0.0, 0.002, "cannot be told", "more short runs for the seed noise (--noise-seeds, now 3)"),
        (0.05, 0.02, "cannot be told", "more short runs for the seed noise (--noise-seeds, now 3)"),
    ],
)
def test_what_may_be_said_rests_on_rows_and_seeds(excess, seed_noise, word, words):
    found, reference = gaps([excess, 0.0], seed_noise=seed_noise)
    assert found[1].verdict.word == word
    choice = choose(found, reference, 0.005, (1, 2))
    assert words in wording.choice(choice)
    # What the search does is the same, whatever the seeds' noise is.
    assert choice.rank == (2 if excess > 0 else 1)


def test_after_sixteen_steps_on_a_few_rows_nothing_is_said():
    """Seen once: "indistinguishable to within .0033" by 6 held-out rows."""
    rank, reference = measured(0.0, seed=1), measured(0.0, seed=2)
    few = [RowLosses(rows.nats[:6], rows.tokens[:6]) for rows in (rank, reference)]
    judge = Judge(LossTolerance(0.0033, 0.001, 3, from_user=True))
    gap = judge.compare(*few, 1)
    assert (gap.verdict.word, gap.confidence) == ("cannot be told", None)
    assert "12 at least; there are 6" in gap.verdict.needs[0]
    refused = Judge(judge.tolerance, refused=("--max-steps 40",)).compare(rank, reference, 1)
    assert (refused.verdict.word, refused.confidence) == ("cannot be told", None)
    assert refused.verdict.needs == ("--max-steps 40",)


def test_several_looks_share_the_risk():
    rank, reference = measured(0.0, seed=1), measured(0.0, seed=2)
    tolerance = LossTolerance(0.005, 0.001, 3, from_user=True)
    widths = []
    for looks in (1, 3):
        d = Judge(tolerance, looks=looks).compare(rank, reference, 1).verdict.difference
        assert d.level == pytest.approx(1 - 0.05 / looks)
        widths.append(d.high - d.low)
    assert widths[1] > 1.5 * widths[0]


def test_seed_noise_is_never_less_than_short_runs_had_it():
    """A share of a loss that has fallen to a hundredth would be a hundredth of the noise."""
    tolerance = tolerance_of(None, [2.0, 2.02, 2.04])
    assert tolerance.seed_deviation(2.02) == pytest.approx(0.02, rel=1e-3)
    assert tolerance.seed_deviation(0.02) == pytest.approx(0.02, rel=1e-3)
    assert tolerance.seed_deviation(4.04) == pytest.approx(0.04, rel=1e-3)
    assert tolerance.margin == 0.01
    assert tolerance_of(0.003, [2.0, 2.02]).margin == 0.003


def test_ranks_that_nobody_compared_are_said():
    found, _ = gaps([0.30, 0.2, 0.1, 0.0])
    choice = choose({1: found[1]}, 8, 0.005, (1, 2, 4, 8))
    assert (choice.rank, choice.kind) == (8, "needed")
    assert "Ranks 2 to 4 were not compared." in wording.choice(choice)
    assert "Raise --max-rank" not in wording.choice(choice)
    choice = choose({1: found[1], 4: gaps([0.0, 0.0])[0][1]}, 8, 0.005, (1, 2, 4, 8))
    assert choice.rank == 4
    assert "Rank 2 was not compared." in wording.choice(choice)


def test_pairing_is_what_tells_them_apart():
    """Rows differ by about a nat; paired, a difference of 0.01 stands out."""
    rank, reference = measured(0.01, seed=1), measured(0.0, seed=2)
    d = paired_difference(rank, reference, 0.95)
    assert d.mean == pytest.approx(0.01, abs=5e-4)
    assert d.high - d.low < 0.002
    assert Gap(d, 0.005).state == "short"
    assert Gap(d, 0.02).state == "enough"
    assert Gap(d, d.mean).state == "open"


def test_bounds_are_one_sided():
    """The upper bound of 95 % lies above the truth in about 95 of 100 experiments."""
    above = 0
    for seed in range(120):
        rank, reference = (
            measured(0.0, noise=0.05, seed=2 * seed),
            measured(0.0, noise=0.05, seed=2 * seed + 1),
        )
        above += paired_difference(rank, reference, 0.95).high >= 0
    assert 107 <= above <= 119


def interval(mean, s):
    """Bounds of 95 %, one-sided, of a normal estimate."""
    return CrossedInterval(mean, mean - 1.645 * s, mean + 1.645 * s, 0.9, 1, 100, 99.0, 4000)


@pytest.mark.parametrize("seed_noise", [0.0, 0.01, 0.03])
def test_how_likely_is_what_simulation_says(seed_noise):
    """Of all true differences, none likelier than another: of those called p likely, a share of p is."""
    draw, tokens, tolerance = np.random.default_rng(0), np.full(40, 10.0), 0.01
    said, held = [], []
    for _ in range(400):
        true = draw.uniform(-0.2, 0.2)
        short = tuple(1 + seed_noise * draw.standard_normal(4))
        off = true + seed_noise * np.sqrt(2) * draw.standard_normal()
        nats = tokens * (1 + off + 0.15 * draw.standard_normal(40))
        judge = Judge(tolerance_of(tolerance, short))
        found = judge.compare(
            RowLosses(tuple(nats), tuple(tokens)), RowLosses(tuple(tokens), tuple(tokens)), 1
        )
        said.append(found.confidence)
        held.append(true <= tolerance)
    said, held = np.array(said), np.array(held)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        within = (low <= said) & (said <= high)
        assert held[within].mean() == pytest.approx(said[within].mean(), abs=0.11)


def test_where_rows_leave_it_open_the_estimate_decides():
    estimates = ((0.009, 0.02), (0.011, 0.02), (0.011, 1e-4))
    found = [Gap(interval(mean, s), 0.01) for mean, s in estimates]
    assert [gap.state for gap in found] == ["open", "open", "short"]
    assert [gap.suffices("estimate") for gap in found] == [True, False, False]
    assert [gap.suffices("larger") for gap in found] == [False, False, False]
    assert Gap(interval(0.009, 1e-4), 0.01).suffices("larger")


def test_each_rank_is_held_to_the_tolerance_of_its_comparison():
    """1 was compared at the end, where τ is .005; 2 sooner, beside a loss twice as high."""
    found = {1: Gap(interval(0.008, 0.0001), 0.005), 2: Gap(interval(0.008, 0.0001), 0.01)}
    choice = choose(found, 4, 0.01, (1, 2, 4))
    assert choice.rank == 2
    assert [choice.gaps[rank].state for rank in (1, 2)] == ["short", "enough"]


def test_confidence_is_near_one_or_zero_where_rows_tell():
    reference = measured(0.0, seed=2)
    judge = Judge(LossTolerance(0.005 / reference.loss, 0.0, 3, from_user=True))
    found = [judge.compare(measured(e, seed=1), reference, 1) for e in (0.0, 0.05)]
    assert [gap.tolerance for gap in found] == pytest.approx([0.005, 0.005])
    assert [round(gap.confidence, 3) for gap in found] == [1.0, 0.0]
    assert judge.compare(reference, reference, 1).confidence == 1.0


def test_tolerance():
    given = tolerance_of(0.01, [1.0, 1.004, 1.002])
    assert given.nats(0.4) == pytest.approx(0.004)
    # What unfinished runs differ by is known all the same.
    assert given.noise == pytest.approx(0.002, rel=0.01)
    assert "as given" in wording.tolerance(given)
    noise = tolerance_of(None, [1.0, 1.004, 1.002])
    assert noise.share == pytest.approx(0.002, rel=0.01)
    assert "3 short runs" in wording.tolerance(noise)
    # An estimate from three runs is kept within a range, and that is said.
    wild, tame = tolerance_of(None, [1.0, 1.5]), tolerance_of(None, [1.0, 1.0])
    assert (wild.share, tame.share) == (0.01, 0.001)
    assert "kept within" in wording.tolerance(wild)
    assert "kept within" in wording.tolerance(tame)


def test_when_the_rate_matters_more_than_the_rank():
    def tried(losses):
        rows = {r: None if x is None else measured(x, seed=int(1e6 * r)) for r, x in losses.items()}
        return RateChoice(1e-3, 4, 5, rows=rows)

    losses = {1e-4: 0.9, 3e-4: 0.7, 1e-3: 0.6, 3e-3: None}
    quiet = LossTolerance(0.005, 0.002, 3, from_user=True)
    alike, _ = gaps([0.001, 0.001, 0.0], seed_noise=0.002)
    effect = rate_effect(tried(losses), quiet, alike)
    # Of the two neighbours one diverged, and 3e-4 lost .1, give or take what a seed makes.
    assert (effect.worse_rate, effect.cost) == (3e-4, pytest.approx(0.1, rel=0.05))
    assert effect.spread < effect.least < effect.cost
    assert "matters more than the rank" in wording.rate_matters(effect)
    apart, _ = gaps([0.4, 0.2, 0.0], seed_noise=0.002)
    assert rate_effect(tried(losses), quiet, apart) is None
    # Where a seed makes as much of a difference as the rates do, nothing is said of them.
    loud = LossTolerance(0.005, 0.05, 3, from_user=True)
    assert rate_effect(tried(losses), loud, alike) is None
    assert rate_effect(RateChoice(1e-3, 4, 5), quiet, alike) is None


def told(word, low, high, *, beyond=False, needs=()):
    d = CrossedInterval((low + high) / 2, low, high, 0.95, 1, 100, 0.5, 1000)
    return Verdict(word, d, 0.005, beyond, needs)


EQUAL, WORSE = told("equal", -0.001, 0.002), told("worse", 0.01, 0.03, beyond=True)
UNTOLD = told("cannot be told", -0.1, 0.2, needs=("more rows",))


def test_checks_say_what_their_verdicts_allow():
    def layered(verdict):
        return wording.layered(Layered({}, "", verdict.difference, 1.0, verdict, wins=False))

    assert "ranks by layer and that with one rank are equal within the margin" in layered(EQUAL)
    assert "cannot be told" in layered(UNTOLD)
    assert layered(UNTOLD).endswith("It is not recommended.")

    def verified(verdict, best=4):
        return wording.verified(Verified(1000, 2, {}, {}, best, verdict, None))

    assert "Rank 2 and rank 4 are equal within the margin of 0.005" in verified(EQUAL)
    assert "Rank 2 is worse, by more than the margin, than rank 4" in verified(WORSE)
    assert "Whether rank 2 is better or worse than rank 4 cannot be told" in verified(UNTOLD)
    assert "To tell, give more rows." in verified(UNTOLD)
    assert "rank 2 has the lowest loss of its neighbours" in verified(None, best=2)

    def grid(verdict):
        return wording.grid(Grid((), {"rank": 8, "rate": 0.01}, 0.004, 0.0, 0.0, verdict))

    assert "The choice is worse, by more than the margin, than rank 8 at rate 0.01" in grid(WORSE)
    assert "Whether the choice is better or worse than rank 8" in grid(UNTOLD)
    assert "has the lowest loss" in grid(None)

    scored = wording.scored(Scored("exact_match", {1: 0.5, 8: 0.75}, {}, 8, 1))
    assert "by the loss 1 (1: 0.5, 8: 0.75)" in scored
    assert "cannot be told" in scored


def test_the_grid_is_judged_by_the_noise_of_all_its_points():
    """Twelve points with two seeds each are twelve degrees of freedom, and the best of them was picked."""
    judge = Judge(LossTolerance(0.005, 0.002, 3, from_user=True))
    points = [GridPoint(rank, 0.1, (1.0, 1.002)) for rank in (1, 2, 4, 8, 16, 32)]
    near, far = GridPoint(64, 0.1, (1.0005, 1.0025)), GridPoint(64, 0.1, (1.1, 1.102))
    words = [
        _beside_best(judge, [*points, ours], ours, points[0], 0.0014).word for ours in (near, far)
    ]
    assert words == ["cannot be told", "worse"]
    once = GridPoint(64, 0.1, (1.1,)), GridPoint(1, 0.1, (1.0,))
    verdict = _beside_best(judge, once, *once, 0.0)
    assert (verdict.word, verdict.needs) == (
        "cannot be told",
        ("more --grid-seeds (one says nothing of others)",),
    )


class TestSpec:
    def test_candidates(self):
        assert RankSpec().ranks == (1, 2, 4, 8, 16, 32)
        assert RankSpec(max_rank=3).ranks == (1, 2, 3)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_rank": 1}, "nothing to choose"),
            ({"tolerance": "little"}, "give 'auto' or a share"),
            ({"tolerance": "0"}, "give 'auto' or a share"),
            ({"rungs": (0.5, 0.25, 1.0)}, "rungs must rise"),
            ({"rungs": (0.5, 1.5)}, "at most 1"),
            ({"rungs": (0.25, 0.5), "decide_at": 0.75}, "after the last of rungs"),
            ({"metric": "field_acuracy"}, "did you mean 'field_accuracy'"),
            ({"level": 0.3}, "level must lie"),
            ({"noise_seeds": 1}, "noise_seeds must be at least 2"),
            ({"budget": 0.0}, "budget must be 'auto' or above 0"),
            ({"budget": "much"}, "budget must be 'auto' or above 0"),
        ],
    )
    def test_bad_values(self, options, words):
        with pytest.raises(ConfigError, match=words):
            RankSpec(**options)

    @pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.005", 0.005), ("auto", None)])
    def test_tolerance(self, text, share):
        assert RankSpec(tolerance=text).share() == share


SPECTRA = {"a": [9.0, 5.0, 1.0], "b": [3.0, 2.9, 2.8], "c": [0.1, 0.1, 0.1]}
COSTS = {"a": 10, "b": 20, "c": 10}


class TestRanksByLayer:
    def test_no_other_ranks_within_the_budget_lose_less(self):
        def lost(ranks):
            return sum(v**2 for p, values in SPECTRA.items() for v in values[ranks[p] :])

        every = [{"a": a, "b": b, "c": c} for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]
        for budget in (50, 60, 70, 90):
            found = allot(SPECTRA, COSTS, budget)
            spent = sum(COSTS[p] * r for p, r in found.items())
            assert spent <= budget
            # Greedy is the best of all that spend no more than it does.
            rivals = [r for r in every if sum(COSTS[p] * k for p, k in r.items()) <= spent]
            assert lost(found) == pytest.approx(min(map(lost, rivals)))

    def test_every_module_keeps_one(self):
        assert allot(SPECTRA, COSTS, 40) == {"a": 1, "b": 1, "c": 1}

    def test_energy(self):
        assert rank_for_energy({"a": [3.0, 1.0], "b": [4.0]}, 25 / 26 - 1e-9) == 1
        assert rank_for_energy({"a": [3.0, 1.0], "b": [4.0]}, 0.99) == 2
