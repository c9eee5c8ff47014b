"""Confidence intervals of a mean over seeds and rows, every seed measured on the same rows.

K seeds, N rows, values x_kn. Another run of the whole experiment would draw other seeds and other
rows. They are crossed, not nested: a hard row is hard for every seed. Two variances of the mean are
estimated, that over rows (of each row's mean over the seeds) and that over seeds (of each seed's mean):

    V_rows = s²_rows / N,  N - 1 degrees;      V_seeds = s²_seeds / K,  K - 1 degrees

With q(ν) the quantile of Student's t, the half width is that of Cochran and Cox (1950),

    √(V_rows + V_seeds) · (V_rows q(N - 1) + V_seeds q(K - 1)) / (V_rows + V_seeds)

which is Student's own interval where one variance decides, and never covers the true value much less
often than its level. (Satterthwaite's degrees of freedom, which are estimated too, do: two seeds whose
means happen to agree then count as many.)

Rows. Student's t suits differences of any symmetric distribution, heavy tails included. Where the
values are skewed, one end is too near. Each end is therefore the farther one of Student's t and of the
bootstrap of t (Efron and Tibshirani 1993, section 12.5): the quantiles of (m* - m) / s* over draws of
rows take q's place; beyond 1,000 rows both are the same and it is left out. Values that lie in a range,
such as scores, may all be equal by chance: with `bounds` given, half a row at either bound and one in
the middle are added (Agresti and Min 2005), so that n equal rows have an interval of about the range
over n, and not one of no width.

One seed says nothing about other seeds: then the interval is that over rows, and `seeds` is 1.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.errors import DataError

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
_RESAMPLES, _SET_RESAMPLES = 1000, 200
_MOST_ROWS = 1000
# Draws at once: 4 M counts are 32 MiB, whatever the number of rows.
_AT_ONCE = 1 << 22
_LEGENDRE = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class CrossedInterval:
    """A mean over seeds and rows, with its interval, all in the unit of the values.

    Attributes:
        mean, low, high: the estimate and the ends of its interval.
        level: of the interval.
        seeds, rows: how many there were.
        of_rows: share of the variance that is the rows'; the rest is the seeds'.
        resamples: bootstrap draws.
    """

    mean: float
    low: float
    high: float
    level: float
    seeds: int
    rows: int
    of_rows: float
    resamples: int

    def covers(self, value: float) -> bool:
        """Whether the value lies in the interval, its ends included."""
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return asdict(self)


def crossed_mean(
    values_KN: Floats,
    weights_N: Floats | None = None,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    bounds: Bounds | None = None,
) -> CrossedInterval:
    """The interval of the mean over seeds of Σ_n w_n x_kn / Σ_n w_n.

    For a difference of two arms give the differences: paired by seed and row, what is common to
    both cancels.

    Args:
        values_KN: one row a seed, one column a row of the data.
        weights_N: of the rows, such as their token counts; equal by default.
        generator: of the draws.
        level: share of such intervals that cover the true value.
        resamples: bootstrap draws; 0 for Student's t alone.
        bounds: between which every value lies, such as (-1, 1) for a difference of two shares.

    Raises:
        DataError: fewer than two rows, or a value that is not finite.
    """
    values_KN = np.asarray(values_KN, dtype=np.float64)
    seeds, rows = _sizes(values_KN)
    weights = np.ones(rows) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    means_K = values_KN @ weights / weights.sum()
    mean = float(means_K.mean())
    values_N, centre, total, squares = values_KN.mean(0), mean, weights.sum(), 0.0
    if bounds is not None:
        middle, each = sum(bounds) / 2, float(weights.mean())
        total += 2 * each
        centre = float(values_N @ weights + 2 * each * middle) / total
        squares = (middle - centre) ** 2 + sum((end - centre) ** 2 for end in bounds) / 2
        squares *= each**2
    squares += float(np.square(weights * (values_N - centre)).sum())
    from_rows = squares / total**2 * (rows / (rows - 1))
    from_seeds = _variance(means_K) / seeds if seeds > 1 else 0.0
    reach = _quantile(level, rows - 1)
    below = above = reach
    if resamples and bounds is None and rows <= _MOST_ROWS and from_rows > 0:
        t_B = _studentised(values_N, weights, mean, generator, resamples)
        if t_B.size:
            ends = np.quantile(t_B, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
            below, above = max(reach, float(ends[1])), max(reach, -float(ends[0]))
    made = CrossedInterval(centre, centre, centre, level, seeds, rows, 1.0, resamples)
    made = _between(made, from_rows, (below, above), from_seeds, seeds - 1)
    made = _within(made, bounds)
    return replace(made, mean=mean, low=min(made.low, mean), high=max(made.high, mean))


def crossed_statistic(
    statistic: Callable[[int, NDArray[np.int64]], float],
    seeds: int,
    rows: int,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = _SET_RESAMPLES,
    bounds: Bounds | None = None,
) -> CrossedInterval:
    """The same for what is no mean over rows, such as a difference of corpus BLEU.

    Its variance over rows is that of the bootstrap, and with `bounds` at least that of one row in N + 2
    that lies at a bound.

    Args:
        statistic: of a seed and of rows (indices, some of them more than once).
        seeds, rows: K and N.
        generator, level, resamples, bounds: as for `crossed_mean`.

    Raises:
        DataError: fewer than two rows.
    """
    _sizes(np.zeros((seeds, rows)))
    whole = np.arange(rows)
    means_K = np.array([statistic(seed, whole) for seed in range(seeds)])
    picks = generator.integers(rows, size=(resamples, rows))
    means_B = np.array([np.mean([statistic(k, pick) for k in range(seeds)]) for pick in picks])
    mean = float(means_K.mean())
    least = 0.0 if bounds is None else (bounds[1] - bounds[0]) / 2 / (rows + 2)
    from_rows = max(_variance(means_B) * rows / (rows - 1), least**2)
    from_seeds = _variance(means_K) / seeds if seeds > 1 else 0.0
    made = CrossedInterval(mean, mean, mean, level, seeds, rows, 1.0, resamples)
    reach = _quantile(level, rows - 1)
    made = _between(made, from_rows, (reach, reach), from_seeds, seeds - 1)
    return _within(made, bounds)


def with_seed_noise(d: CrossedInterval, variance: float, degrees: float) -> CrossedInterval:
    """An interval over rows alone, widened for what other seeds would have given.

    Args:
        d: of one seed.
        variance: of d over seeds, as it was estimated elsewhere.
        degrees: of freedom of that estimate.
    """
    reach, from_rows = _quantile(d.level, d.rows - 1), standard_error(d) ** 2
    below, above = d.mean - d.low, d.high - d.mean
    sides = (reach, reach) if not from_rows else (below / from_rows**0.5, above / from_rows**0.5)
    return _between(d, from_rows, sides, variance, degrees)


def standard_error(d: CrossedInterval) -> float:
    """Of an interval over rows alone: its ends are as far away as Student's t asks for, or one is farther."""
    return min(d.mean - d.low, d.high - d.mean) / _quantile(d.level, d.rows - 1)


def _within(d: CrossedInterval, bounds: Bounds | None) -> CrossedInterval:
    """No value beyond the bounds is possible."""
    if bounds is None:
        return d
    return replace(d, low=max(d.low, bounds[0]), high=min(d.high, bounds[1]))


def _between(
    d: CrossedInterval,
    from_rows: float,
    sides: tuple[float, float],
    from_seeds: float,
    degrees: float,
) -> CrossedInterval:
    """The interval of Cochran and Cox around d's mean; `sides`: what q is for the rows, below and above."""
    total = from_rows + from_seeds
    if total <= 0:
        return replace(d, low=d.mean, high=d.mean, of_rows=1.0)
    share = from_rows / total
    of_seeds = _quantile(d.level, degrees) if from_seeds > 0 else 0.0
    below, above = (total**0.5 * (share * side + (1 - share) * of_seeds) for side in sides)
    low, high = float(d.mean - below), float(d.mean + above)
    return replace(d, low=low, high=high, of_rows=float(share))


def _studentised(
    values_N: Floats, weights: Floats, mean: float, generator: np.random.Generator, resamples: int
) -> Floats:
    """(m* - m) / s* of draws of rows, weighted; a draw of equal rows has none."""
    rows = len(values_N)
    apart, total = weights * (values_N - mean), weights.sum()
    parts = []
    columns = (weights, apart, apart**2, apart * weights, weights**2)
    for start in range(0, resamples, block := max(1, _AT_ONCE // rows)):
        picks = generator.integers(rows, size=(min(block, resamples - start), rows))
        totals, sums, squares, products, parted = (column[picks].sum(1) for column in columns)
        means = sums / totals  # less the mean of all rows
        squares = squares - 2 * means * products + means**2 * parted
        errors = np.sqrt(np.maximum(squares, 0) * rows / (rows - 1)) / totals
        differ = errors > 1e-9 * np.abs(apart).max() / total
        parts.append(means[differ] / errors[differ])
    return np.concatenate(parts)


def _quantile(level: float, degrees: float) -> float:
    """How many standard errors a two-sided interval of Student's t reaches.

    With t = √ν tan θ the distribution is F(t) = 1/2 + c ∫₀^θ cos^(ν-1), c = Γ((ν+1)/2) / (√π Γ(ν/2)): a
    smooth integral over a short way, by Gauss and Legendre. SciPy has it too; scores are shown without.
    """
    places, weights = _LEGENDRE
    c = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    # Not far beyond the answer: 64 places must see the peak at 0, which is 1/√ν wide.
    low, high = 0.0, min(math.pi / 2, 40 / math.sqrt(degrees))
    for _ in range(60):  # bisected to the last bit
        theta = (low + high) / 2
        area = theta / 2 * float(weights @ np.cos(theta / 2 * (places + 1)) ** (degrees - 1))
        low, high = (theta, high) if c * area < level / 2 else (low, theta)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _sizes(values_KN: Floats) -> tuple[int, int]:
    if values_KN.ndim != 2 or values_KN.shape[0] < 1 or values_KN.shape[1] < 2:
        raise DataError(
            f"an interval needs values by seed and row, of at least 2 rows; got shape {values_KN.shape}"
        )
    if not np.isfinite(values_KN).all():
        raise DataError("an interval needs finite values")
    return values_KN.shape[0], values_KN.shape[1]
