"""Intervals over seeds and rows: by hand where one can, by simulation where one cannot."""

import math

import numpy as np
import pytest
from scipy import stats

from lorakit.errors import DataError
from lorakit.evaluation import bootstrap_mean, crossed_mean, crossed_statistic


def rng(seed=0):
    return np.random.default_rng(seed)


def test_one_seed_is_the_bootstrap_over_rows_stretched_by_students_t():
    values = rng(1).normal(size=40)
    ours = crossed_mean(values[None], generator=rng(), resamples=20_000)
    plain = bootstrap_mean(values, generator=rng(), resamples=20_000)
    stretch = stats.t.ppf(0.975, 39) / stats.norm.ppf(0.975)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.degrees == pytest.approx(39)
    assert ours.low - ours.mean == pytest.approx(stretch * (plain.low - plain.mean), rel=0.05)
    assert ours.high - ours.mean == pytest.approx(stretch * (plain.high - plain.mean), rel=0.05)


def test_where_only_seeds_differ_the_degrees_are_theirs():
    values = np.repeat([[0.0], [1.0], [2.0], [4.0]], 30, axis=1)
    found = crossed_mean(values, generator=rng(), resamples=20_000)
    assert found.degrees == pytest.approx(3)
    # t interval of four values by hand: mean 1.75, s² = 2.9167, s/√4 = 0.8539, t_3 = 3.1824.
    half = 3.1824 * 0.8539
    assert found.mean == 1.75
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)


def test_nothing_that_varies_is_a_point():
    found = crossed_mean(np.full((3, 9), 0.25), generator=rng())
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    assert found.covers(0.25)
    assert not found.covers(0.0)


def test_rows_count_by_their_weights():
    values, tokens = np.array([[1.0, 3.0]]), np.array([3.0, 1.0])
    assert crossed_mean(values, tokens, generator=rng()).mean == (3 * 1 + 1 * 3) / 4


def test_changing_the_sides_changes_the_sign():
    values = rng(3).normal(size=(3, 25))
    one, other = (crossed_mean(s * values, generator=rng()) for s in (1, -1))
    assert other.mean == -one.mean
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), rel=0.1)


def test_a_statistic_of_the_set_agrees_with_the_mean_where_it_is_one():
    values = rng(4).normal(size=(3, 30))
    as_mean = crossed_mean(values, generator=rng(), resamples=3000)
    as_set = crossed_statistic(
        lambda seed, rows: float(values[seed, rows].mean()), 3, 30, generator=rng(), resamples=3000
    )
    assert as_set.mean == pytest.approx(as_mean.mean)
    assert (as_set.low, as_set.high) == pytest.approx((as_mean.low, as_mean.high), abs=0.05)


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.84), (3, 0.9), (5, 0.92)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.4])
def test_it_holds_the_truth_as_often_as_docs_compare_says(seeds, share, of_seeds):
    """x = row + seed + noise, true mean 0; 0.4 is where seeds decide, which is hardest."""
    draw, trials, hits = rng(11), 800, 0
    for _ in range(trials):
        values = draw.normal(size=(1, 60)) + of_seeds * draw.normal(size=(seeds, 1))
        values = values + 0.5 * draw.normal(size=(seeds, 60))
        hits += crossed_mean(values, generator=draw, resamples=300).covers(0.0)
    assert hits / trials >= share


def test_a_plain_bootstrap_over_two_seeds_would_not():
    """What the widening is for: without it two seeds that decide are held to be many."""
    draw, hits = rng(11), 0
    for _ in range(300):
        means = draw.normal(size=2)
        picks = means[draw.integers(2, size=(300, 2))].mean(1)
        low, high = np.quantile(picks, [0.025, 0.975])
        hits += low <= 0 <= high
    assert hits / 300 < 0.7


def test_values_that_allow_no_interval_are_refused():
    with pytest.raises(DataError, match="at least 2 rows"):
        crossed_mean(np.zeros((2, 1)), generator=rng())
    with pytest.raises(DataError, match="finite"):
        crossed_mean(np.array([[1.0, math.nan]]), generator=rng())
