"""Confidence intervals of a mean over seeds and rows, every seed measured on the same rows.

K seeds, N rows, values x_kn. Another run of the whole experiment would draw other seeds and other
rows, so both are varied:

- rows are resampled with replacement, the same for all seeds: they are crossed, not nested, a hard
  row is hard for every seed;
- seeds are too few to be resampled (two of them have three different means). To each draw of rows is
  added a normal deviation of variance V_seeds = s² / K, with s² that of the seeds' means;
- a variance that was estimated from K values is itself uncertain. The percentile interval is
  stretched by t_ν / z, with Satterthwaite's (1946) degrees of freedom of the sum of both variances,

      ν = (V_rows + V_seeds)² / (V_rows² / (N - 1) + V_seeds² / (K - 1)).

Where the variance of the rows dominates, ν is about N and the interval is hardly stretched. Where
that of two seeds dominates, ν is 1 and the interval is Student's for two values; it then covers the
true value somewhat less often than its level, because ν is estimated too. One seed says nothing
about other seeds: then only rows are resampled, and `seeds` is 1.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.errors import DataError

Floats = NDArray[np.float64]
_RESAMPLES, _SET_RESAMPLES = 4000, 200
# Draws at once: 4 M counts are 32 MiB, whatever the number of rows.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class CrossedInterval:
    """A mean over seeds and rows, with its interval, all in the unit of the values.

    Attributes:
        mean, low, high: the estimate and the ends of its interval.
        level: of the interval.
        seeds, rows: how many there were.
        degrees: ν; 0 where nothing varies.
        resamples: bootstrap draws.
    """

    mean: float
    low: float
    high: float
    level: float
    seeds: int
    rows: int
    degrees: float
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
) -> CrossedInterval:
    """The interval of the mean over seeds of Σ_n w_n x_kn / Σ_n w_n.

    For a difference of two arms give the differences: paired by seed and row, what is common to
    both cancels.

    Args:
        values_KN: one row a seed, one column a row of the data.
        weights_N: of the rows, such as their token counts; equal by default.
        generator: of the draws.
        level: share of such intervals that cover the true value.
        resamples: bootstrap draws.

    Raises:
        DataError: fewer than two rows, or a value that is not finite.
    """
    values_KN = np.asarray(values_KN, dtype=np.float64)
    _, rows = _sizes(values_KN)
    weights = np.ones(rows) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    means_K = values_KN @ weights / weights.sum()
    parts = []
    for start in range(0, resamples, block := max(1, _AT_ONCE // rows)):
        size = min(block, resamples - start)
        counts_BN = generator.multinomial(rows, np.full(rows, 1 / rows), size=size) * weights
        parts.append(counts_BN @ values_KN.T / counts_BN.sum(1, keepdims=True))
    return _interval(means_K, np.concatenate(parts), rows, generator, level)


def crossed_statistic(
    statistic: Callable[[int, NDArray[np.int64]], float],
    seeds: int,
    rows: int,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = _SET_RESAMPLES,
) -> CrossedInterval:
    """The same for what is no mean over rows, such as a difference of corpus BLEU.

    Args:
        statistic: of a seed and of rows (indices, some of them more than once).
        seeds, rows: K and N.
        generator, level, resamples: as for `crossed_mean`.

    Raises:
        DataError: fewer than two rows.
    """
    _sizes(np.zeros((seeds, rows)))
    whole = np.arange(rows)
    means_K = np.array([statistic(seed, whole) for seed in range(seeds)])
    picks = generator.integers(rows, size=(resamples, rows))
    means_BK = np.array([[statistic(seed, pick) for seed in range(seeds)] for pick in picks])
    return _interval(means_K, means_BK, rows, generator, level)


def _sizes(values_KN: Floats) -> tuple[int, int]:
    if values_KN.ndim != 2 or values_KN.shape[0] < 1 or values_KN.shape[1] < 2:
        raise DataError(
            f"an interval needs values by seed and row, of at least 2 rows; got shape {values_KN.shape}"
        )
    if not np.isfinite(values_KN).all():
        raise DataError("an interval needs finite values")
    return values_KN.shape[0], values_KN.shape[1]


def _interval(
    means_K: Floats, means_BK: Floats, rows: int, generator: np.random.Generator, level: float
) -> CrossedInterval:
    """From each seed's mean on all rows, and on the rows of each draw."""
    from scipy.special import ndtri, stdtrit

    seeds, draws = len(means_K), len(means_BK)
    mean = float(means_K.mean())
    of_rows_B = means_BK.mean(1)
    from_seeds = float(means_K.var(ddof=1)) / seeds if seeds > 1 else 0.0
    drawn_B = of_rows_B + np.sqrt(from_seeds) * generator.standard_normal(draws)
    from_rows = float(of_rows_B.var(ddof=1)) if draws > 1 else 0.0
    degrees, stretch = 0.0, 1.0
    if from_rows + from_seeds > 0:
        spread = from_rows**2 / (rows - 1)
        spread += from_seeds**2 / (seeds - 1) if seeds > 1 else 0.0
        degrees = (from_rows + from_seeds) ** 2 / spread
        stretch = float(stdtrit(degrees, 0.5 + level / 2) / ndtri(0.5 + level / 2))
    ends = np.quantile(drawn_B, [(1 - level) / 2, (1 + level) / 2])
    low, high = (mean + stretch * (float(end) - mean) for end in ends)
    return CrossedInterval(mean, low, high, level, seeds, rows, degrees, draws)
