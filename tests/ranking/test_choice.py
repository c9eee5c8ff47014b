"""From losses to an answer: losses whose answer is known."""

import numpy as np
import pytest

from lorakit.errors import ConfigError
from lorakit.evaluation.crossed import CrossedInterval
from lorakit.experiments.measuring import RowLosses
from lorakit.ranking import wording
from lorakit.ranking.checks import allot
from lorakit.ranking.choose import (
    Gap,
    Judge,
    LossTolerance,
    choose,
    paired_difference,
    tolerance_of,
)
from lorakit.ranking.inspect import rank_for_energy
from lorakit.ranking.probing import rate_effect
from lorakit.ranking.spec import RankSpec

ROWS = 300


def measured(excess, *, noise=0.002, seed=0):
    """Rows of unlike length and difficulty, all this much above 1 nat, with noise of their own."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    tokens = shared.integers(5, 40, ROWS).astype(float)
    hard = shared.gamma(2.0, 0.5, ROWS)
    nats = tokens * (hard + excess + noise * own.standard_normal(ROWS))
    return RowLosses(tuple(nats), tuple(tokens))


def gaps(excesses, tolerance=0.005, **options):
    """Of ranks 1, 2, 4, … against the last, at a tolerance in nats per token."""
    ranks = [2**i for i in range(len(excesses))]
    points = [measured(e, seed=i, **options) for i, e in enumerate(excesses)]
    return {
        rank: Gap(paired_difference(point, points[-1], 0.95), tolerance)
        for rank, point in zip(ranks[:-1], points[:-1], strict=True)
    }, ranks[-1]


@pytest.mark.parametrize(
    ("excesses", "rank", "kind"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1, "indistinguishable"),
        ([0.05, 0.02, 0.0, 0.0], 4, "needed"),
        ([0.05, 0.0, 0.0, 0.0], 2, "needed"),
        ([0.30, 0.2, 0.1, 0.0], 8, "unsaturated"),
        # A small rank may be better than the largest.
        ([-0.02, 0.0, 0.0, 0.0], 1, "indistinguishable"),
    ],
)
def test_known_curves_have_their_known_answer(excesses, rank, kind):
    found, reference = gaps(excesses)
    choice = choose(found, reference, 0.005, (1, 2, 4, 8))
    assert (choice.rank, choice.kind) == (rank, kind)
    assert str(rank) in wording.choice(choice)
    assert ("raise --max-rank" in wording.choice(choice)) == (kind == "unsaturated")


def test_what_rows_cannot_tell_is_said():
    """Rank 1 is within τ by its mean; with so much noise its upper bound is not."""
    found, reference = gaps([0.002, 0.0], noise=0.3)
    d = found[1].difference
    assert d.mean < 0.005 < d.high
    assert d.low < 0.005
    by_mean = choose(found, reference, 0.005, (1, 2))
    assert by_mean.rank == 1
    assert "likelier answer" in wording.choice(by_mean)
    assert 0.5 < by_mean.confidence < 0.95
    careful = choose(found, reference, 0.005, (1, 2), undecided="larger")
    assert careful.rank == 2
    assert "do not say" in wording.choice(careful)
    assert careful.kind == "needed"  # and not "unsaturated", which nobody has seen


def test_ranks_that_nobody_compared_are_said():
    found, _ = gaps([0.30, 0.2, 0.1, 0.0])
    choice = choose({1: found[1]}, 8, 0.005, (1, 2, 4, 8))
    assert (choice.rank, choice.kind) == (8, "needed")
    assert "Ranks 2 to 4 were not compared." in wording.choice(choice)
    assert "raise --max-rank" not in wording.choice(choice)
    choice = choose({1: found[1], 4: gaps([0.0, 0.0])[0][1]}, 8, 0.005, (1, 2, 4, 8))
    assert choice.rank == 4
    assert "Rank 2 was not compared." in wording.choice(choice)


def test_pairing_is_what_tells_them_apart():
    """Rows differ by about a nat; paired, a difference of 0.01 stands out."""
    rank, reference = measured(0.01, seed=1), measured(0.0, seed=2)
    d = paired_difference(rank, reference, 0.95)
    assert d.mean == pytest.approx(0.01, abs=5e-4)
    assert d.high - d.low < 0.002
    assert Gap(d, 0.005).state == "worse"
    assert Gap(d, 0.02).state == "equivalent"
    assert Gap(d, d.mean).state == "open"


def test_bounds_are_one_sided():
    """The upper bound of 95 % lies above the truth in about 95 of 100 experiments."""
    above = 0
    for seed in range(200):
        rank, reference = (
            measured(0.0, noise=0.05, seed=2 * seed),
            measured(0.0, noise=0.05, seed=2 * seed + 1),
        )
        above += paired_difference(rank, reference, 0.95).high >= 0
    assert 180 <= above <= 198


def interval(mean, s):
    """Bounds of 95 %, one-sided, of a normal estimate."""
    return CrossedInterval(mean, mean - 1.645 * s, mean + 1.645 * s, 0.9, 1, 100, 99.0, 4000)


@pytest.mark.parametrize(
    ("mean", "s"), [(0.0, 0.02), (0.02, 0.02), (0.02, 0.005), (0.006, 0.02), (-0.01, 0.01)]
)
def test_how_likely_is_what_simulation_says(mean, s):
    """Of all true differences, none likelier than another, those whose estimate came out like this."""
    tolerance, generator = 0.01, np.random.default_rng(0)
    true = generator.uniform(-0.2, 0.2, 4_000_000)
    seen = true + s * generator.standard_normal(true.size)
    alike = true[abs(seen - mean) < 0.05 * s]
    assert len(alike) > 1000
    wanted = (alike <= tolerance).mean()
    assert Gap(interval(mean, s), tolerance).confidence == pytest.approx(wanted, abs=0.03)


def test_where_rows_leave_it_open_what_is_likelier_decides():
    estimates = ((0.009, 0.02), (0.011, 0.02), (0.011, 1e-4))
    found = [Gap(interval(mean, s), 0.01) for mean, s in estimates]
    assert [gap.state for gap in found] == ["open", "open", "worse"]
    assert [gap.suffices("estimate") for gap in found] == [True, False, False]
    assert [gap.confidence > 0.5 for gap in found] == [True, False, False]
    assert [gap.suffices("larger") for gap in found] == [False, False, False]
    assert Gap(interval(0.009, 1e-4), 0.01).suffices("larger")


def test_each_rank_is_held_to_the_tolerance_of_its_comparison():
    """1 was compared at the end, where τ is .005; 2 sooner, beside a loss twice as high."""
    found = {1: Gap(interval(0.008, 0.0001), 0.005), 2: Gap(interval(0.008, 0.0001), 0.01)}
    choice = choose(found, 4, 0.01, (1, 2, 4))
    assert choice.rank == 2
    assert [choice.gaps[rank].state for rank in (1, 2)] == ["worse", "equivalent"]
    assert (choice.below("worse"), choice.below("open", "equivalent")) == ([1], [])
    assert choice.confidence == pytest.approx(1.0)


def test_confidence_is_near_one_or_zero_where_rows_tell():
    reference = measured(0.0, seed=2)
    judge = Judge(LossTolerance(0.005 / reference.loss, 0.0, 2, from_user=True))
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


def test_when_the_rate_matters_and_the_rank_does_not():
    alike, _ = gaps([0.001, 0.001, 0.0])
    losses = {1e-4: 0.9, 3e-4: 0.7, 1e-3: 0.6, 3e-3: None}
    effect = rate_effect(losses, 1e-3, alike)
    assert effect is not None
    # Of the two neighbours one diverged, and 3e-4 lost .1.
    assert (effect.worse_rate, effect.cost) == (3e-4, pytest.approx(0.1))
    assert "Rank hardly matters here" in wording.rate_matters(effect)
    apart, _ = gaps([0.4, 0.2, 0.0])
    assert rate_effect(losses, 1e-3, apart) is None
    assert rate_effect({}, 1e-3, alike) is None


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
            ({"budget": 0.0}, "budget must be above 0"),
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
