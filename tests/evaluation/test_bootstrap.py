import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.errors import ConfigError, DataError
from lorakit.evaluation import bootstrap_difference, bootstrap_mean, crossed


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_width_agrees_with_the_closed_form() -> None:
    # The bootstrap's mean has the standard error sqrt(population variance / n), and for many
    # rows it is normal: the 95 % interval is mean ± 1.96 standard errors.
    values = rng(1).normal(3.0, 2.0, size=2_000)
    interval = bootstrap_mean(values, generator=rng(2))
    half = 1.959964 * values.std() / np.sqrt(values.size)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_two_rows_have_the_interval_of_student() -> None:
    # Mean ½, standard error ½, and 12.706 of them with one degree of freedom.
    wide = bootstrap_mean([0.0, 1.0], generator=rng())
    assert (wide.low, wide.mean, wide.high) == pytest.approx((-5.853, 0.5, 6.853), abs=1e-3)
    # A share cannot leave its range.
    share = bootstrap_mean([0.0, 1.0], generator=rng(), bounds=(0.0, 1.0))
    assert (share.low, share.high) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [8, 20])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_few_rows_are_covered_too(rows: int, shape: str) -> None:
    # A percentile interval over 8 rows holds the mean in 88 (normal) and 78 (skewed) of 100 cases.
    draws, held, held_by_percentiles = rng(12), 0, 0
    for _ in range(400):
        values = draws.normal(size=rows) if shape == "normal" else draws.lognormal(size=rows)
        truth = 0.0 if shape == "normal" else np.exp(0.5)
        held += bootstrap_mean(values, generator=draws, resamples=200).covers(truth)
        means = values[draws.integers(rows, size=(200, rows))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        held_by_percentiles += low <= truth <= high
    assert held / 400 >= (0.93 if shape == "normal" else 0.86 if rows == 8 else 0.9)
    assert held > held_by_percentiles


def test_rows_that_all_score_alike_still_have_an_interval() -> None:
    # Of 30 rows without a failure the rule of three says: up to one in ten may fail.
    all_right = bootstrap_mean([1.0] * 30, generator=rng(), bounds=(0.0, 1.0))
    assert (all_right.mean, all_right.high) == (1.0, 1.0)
    assert 0.86 < all_right.low < 0.95
    none_differs = bootstrap_mean([0.0] * 30, generator=rng(), bounds=(-1.0, 1.0))
    assert none_differs.low == pytest.approx(-none_differs.high)
    assert 0.03 < none_differs.high < 0.1


def test_coverage_is_near_its_level() -> None:
    # 400 experiments of 60 Bernoulli(.3) rows: the binomial standard error of 90 % is 1.5 %.
    draws = rng(3)
    covered = sum(
        bootstrap_mean(
            (draws.random(60) < 0.3).astype(float), generator=draws, level=0.9, resamples=600
        ).covers(0.3)
        for _ in range(400)
    )
    assert 0.84 <= covered / 400 <= 0.95


def test_pairing_narrows_the_interval() -> None:
    draws = rng(4)
    hardness = draws.normal(0.0, 1.0, size=300)
    first = hardness + 0.10 + draws.normal(0.0, 0.05, size=300)
    second = hardness + draws.normal(0.0, 0.05, size=300)
    paired = bootstrap_difference(first, second, generator=rng(5))
    assert paired.covers(0.10)
    assert not paired.covers(0.0)
    alone = bootstrap_mean(first, generator=rng(5))
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.integers(0, 5))
@settings(max_examples=40)
def test_invariants(values: list[float], seed: int) -> None:
    one = bootstrap_mean(values, generator=rng(seed), resamples=300)
    assert one == bootstrap_mean(values, generator=rng(seed), resamples=300)
    assert one.low <= one.mean <= one.high
    inside = bootstrap_mean(values, generator=rng(seed), resamples=300, bounds=(-100, 100))
    assert -100 <= inside.low <= inside.mean <= inside.high <= 100
    mirrored = bootstrap_mean([-v for v in values], generator=rng(seed), resamples=300)
    assert mirrored.low == pytest.approx(-one.high, rel=1e-6, abs=1e-6)
    same = bootstrap_difference(values, values, generator=rng(seed), resamples=300)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)


def test_swapping_the_arms_mirrors_the_interval() -> None:
    a, b = rng(6).random(50), rng(7).random(50)
    there = bootstrap_difference(a, b, generator=rng(8))
    back = bootstrap_difference(b, a, generator=rng(8))
    assert there.low == pytest.approx(-back.high)
    assert there.high == pytest.approx(-back.low)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng(9).random(64)
    whole = bootstrap_mean(values, generator=rng(10), resamples=500)
    monkeypatch.setattr(crossed, "_AT_ONCE", 64 * 8)
    assert bootstrap_mean(values, generator=rng(10), resamples=500) == whole


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "at least 2 rows"), ([1.0], "at least 2 rows"), ([1.0, float("nan")], "row 1 has")],
)
def test_bad_values(values: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bootstrap_mean(values, generator=rng())


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="level"):
        bootstrap_mean([0.0, 1.0], generator=rng(), level=95)
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap_mean([0.0, 1.0], generator=rng(), resamples=0)
    with pytest.raises(DataError, match="same rows"):
        bootstrap_difference([1.0, 2.0], [1.0], generator=rng())


def test_to_dict() -> None:
    data = bootstrap_mean([0.0, 1.0], generator=rng(), resamples=10).to_dict()
    assert set(data) == {"mean", "low", "high", "level", "n", "resamples"}
