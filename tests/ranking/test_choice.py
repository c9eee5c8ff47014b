"""From losses to an answer: losses whose answer is known."""

import numpy as np
import pytest

from lorakit.errors import ConfigError
from lorakit.evaluation.crossed import CrossedInterval
from lorakit.ranking import wording
from lorakit.ranking.choose import (
    Measured,
    choose,
    gap,
    likely,
    rate_effect,
    state_of,
    suffices,
    tolerance_of,
)
from lorakit.ranking.layers import allot, rank_for_energy
from lorakit.ranking.spec import RankSpec

ROWS = 300


def measured(excess, *, noise=0.002, seed=0):
    """Rows of unlike length and difficulty, all this much above 1 nat, with noise of their own."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    tokens = shared.integers(5, 40, ROWS).astype(float)
    hard = shared.gamma(2.0, 0.5, ROWS)
    return Measured(tokens * (hard + excess + noise * own.standard_normal(ROWS)), tokens)


def gaps(excesses, **options):
    """Of ranks 1, 2, 4, … against the last."""
    ranks = [2**i for i in range(len(excesses))]
    points = [measured(e, seed=i, **options) for i, e in enumerate(excesses)]
    generator = np.random.default_rng(0)
    return {
        rank: gap(point, points[-1], generator=generator, level=0.95)
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
    assert found[1].mean < 0.005 < found[1].high
    assert found[1].low < 0.005
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
    d = gap(rank, reference, generator=np.random.default_rng(0), level=0.95)
    assert d.mean == pytest.approx(0.01, abs=5e-4)
    assert d.high - d.low < 0.002
    assert state_of(d, 0.005) == "worse"
    assert state_of(d, 0.02) == "equivalent"
    assert state_of(d, d.mean) == "open"


def test_bounds_are_one_sided():
    """The upper bound of 95 % lies above the truth in about 95 of 100 experiments."""
    above = 0
    for seed in range(200):
        rank, reference = (
            measured(0.0, noise=0.05, seed=2 * seed),
            measured(0.0, noise=0.05, seed=2 * seed + 1),
        )
        d = gap(rank, reference, generator=np.random.default_rng(seed), level=0.95)
        above += d.high >= 0
    assert 180 <= above <= 198


def test_seeds_are_paired_and_widen_the_interval():
    few = gap(
        measured(0.01, seed=1), measured(0, seed=2), generator=np.random.default_rng(0), level=0.95
    )
    many = gap(
        [measured(0.01, seed=1), measured(0.03, seed=3)],
        [measured(0, seed=2), measured(0, seed=4)],
        generator=np.random.default_rng(0),
        level=0.95,
    )
    assert many.mean == pytest.approx(0.02, abs=1e-3)
    assert many.high - many.low > few.high - few.low


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
    assert likely(interval(mean, s), tolerance) == pytest.approx(wanted, abs=0.03)


def test_where_rows_leave_it_open_what_is_likelier_decides():
    found = [interval(mean, s) for mean, s in ((0.009, 0.02), (0.011, 0.02), (0.011, 1e-4))]
    assert [state_of(d, 0.01) for d in found] == ["open", "open", "worse"]
    assert [suffices(d, 0.01, "estimate") for d in found] == [True, False, False]
    assert [likely(d, 0.01) > 0.5 for d in found] == [True, False, False]
    assert [suffices(d, 0.01, "larger") for d in found] == [False, False, False]
    assert suffices(interval(0.009, 1e-4), 0.01, "larger")


def test_each_rank_is_held_to_the_tolerance_of_its_comparison():
    """1 was compared at the end, where τ is .005; 2 sooner, beside a loss twice as high."""
    found = {1: interval(0.008, 0.0001), 2: interval(0.008, 0.0001)}
    choice = choose(found, 4, 0.01, (1, 2, 4), tolerances={1: 0.005, 2: 0.01})
    assert choice.rank == 2
    assert choice.states == {1: "worse", 2: "equivalent"}
    assert choice.confidence == pytest.approx(1.0)


def test_confidence_is_near_one_or_zero_where_rows_tell():
    reference = measured(0.0, seed=2)
    found = [
        gap(measured(e, seed=1), reference, generator=np.random.default_rng(0), level=0.95)
        for e in (0.0, 0.05)
    ]
    assert [round(likely(d, 0.005), 3) for d in found] == [1.0, 0.0]
    same = gap(reference, reference, generator=np.random.default_rng(0), level=0.95)
    assert likely(same, 0.005) == 1.0


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
