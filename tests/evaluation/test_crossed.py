"""Intervals over seeds and rows: by hand where one can, by simulation where one cannot."""

import math

import numpy as np
import pytest
from scipy import stats

from lorakit.errors import DataError
from lorakit.evaluation import crossed_mean, crossed_statistic
from lorakit.evaluation.crossed import with_seed_noise


def rng(seed=0):
    return np.random.default_rng(seed)


def test_one_seed_is_students_interval_over_rows():
    values = rng(1).normal(size=40)
    ours = crossed_mean(values[None], generator=rng(), resamples=0)
    by_scipy = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((by_scipy.low, by_scipy.high))
    assert (ours.seeds, ours.of_rows) == (1, 1.0)
    # The bootstrap of t moves an end outwards where the rows are skewed, and never inwards.
    drawn = crossed_mean(np.exp(2 * values)[None], generator=rng())
    plain = crossed_mean(np.exp(2 * values)[None], generator=rng(), resamples=0)
    assert drawn.high > 1.2 * plain.high
    assert drawn.low == plain.low


@pytest.mark.parametrize("rows", [2, 3, 4, 8, 31, 1000, 100_000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile_is_scipys(rows, level):
    values = rng(2).normal(size=rows)
    ours = crossed_mean(values[None], generator=rng(), resamples=0, level=level)
    by_scipy = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    assert (ours.low, ours.high) == pytest.approx((by_scipy.low, by_scipy.high), rel=1e-7)


def test_where_only_seeds_differ_it_is_students_over_them():
    values = np.repeat([[0.0], [1.0], [2.0], [4.0]], 30, axis=1)
    found = crossed_mean(values, generator=rng())
    by_scipy = stats.ttest_1samp([0.0, 1.0, 2.0, 4.0], 0.0).confidence_interval(0.95)
    assert (found.mean, found.of_rows) == (1.75, 0.0)
    assert (found.low, found.high) == pytest.approx((by_scipy.low, by_scipy.high))


def test_both_variances_by_hand():
    """Means over seeds 0, 2, 4 (V = 4/3 with 2 degrees); means over rows ±1 of 2 (V = 2/6, 5 degrees)."""
    values = np.array([[0.0], [2.0], [4.0]]) + np.array([[-1.0, 1, -1, 1, -1, 1]])
    found = crossed_mean(values, generator=rng(), resamples=0)
    rows, seeds = (6 / 5) / 6, 4 / 3
    q = (rows * stats.t.ppf(0.975, 5) + seeds * stats.t.ppf(0.975, 2)) / (rows + seeds)
    assert found.high - found.mean == pytest.approx(math.sqrt(rows + seeds) * q)
    assert found.of_rows == pytest.approx(rows / (rows + seeds))


def test_seed_noise_that_is_known_from_elsewhere_widens_one_seed():
    values = rng(2).normal(size=(1, 50))
    one = crossed_mean(values, generator=rng(), resamples=0)
    assert with_seed_noise(one, 0.0, 2) == one
    error = values.var(ddof=1) / 50
    wide = with_seed_noise(one, 3 * error, 2)
    q = (stats.t.ppf(0.975, 49) + 3 * stats.t.ppf(0.975, 2)) / 4
    assert wide.high - wide.mean == pytest.approx(math.sqrt(4 * error) * q)
    assert wide.of_rows == pytest.approx(0.25)
    # Rows that do not differ at all: the seeds' interval alone.
    same = with_seed_noise(crossed_mean(np.zeros((1, 9)), generator=rng()), 0.01, 3)
    assert same.high == pytest.approx(0.1 * stats.t.ppf(0.975, 3))


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
    assert (as_set.low, as_set.high) == pytest.approx((as_mean.low, as_mean.high), abs=0.08)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.4, 2.0])
def test_it_holds_the_truth_as_often_as_docs_compare_says(seeds, of_seeds):
    """x = row + seed + noise, true mean 0; at 2 the seeds decide, at 0 the rows."""
    draw, trials, hits = rng(11), 800, 0
    for _ in range(trials):
        values = draw.normal(size=(1, 60)) + of_seeds * draw.normal(size=(seeds, 1))
        values = values + 0.5 * draw.normal(size=(seeds, 60))
        hits += crossed_mean(values, generator=draw, resamples=100).covers(0.0)
    assert hits / trials >= 0.93


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
