"""Percentile bootstrap intervals of a mean over rows.

Resample the n rows with replacement, take the mean, do it B times; the interval runs between
the (1-level)/2 and (1+level)/2 quantiles of the B means (Efron 1979). It carries no assumption
on the shape of the distribution; with few rows (under about 20) it is somewhat too narrow.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.errors import ConfigError, DataError

# Indices drawn at once: 4 M int64 are 32 MiB, whatever the number of rows.
_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval, all three in the unit of the values."""

    mean: float
    low: float
    high: float
    level: float
    n: int
    resamples: int

    def covers(self, value: float) -> bool:
        """Whether the value lies in the interval, its ends included."""
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, float]:
        """The fields by name, as plain numbers."""
        return asdict(self)


def bootstrap_mean(
    values: Sequence[float] | NDArray[np.float64],
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """The interval of the mean of one value a row.

    The same generator state gives the same interval. Raises DataError for fewer than two rows
    or a value that is not finite, ConfigError for a level outside (0, 1) or no resamples.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.size < 2:
        raise DataError(
            f"an interval needs one value a row and at least 2 rows; got shape {rows.shape}"
        )
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows))[0])
        raise DataError(f"row {bad} has the value {rows[bad]}; an interval needs finite values")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level}: give the share of the interval, between 0 and 1")
    if resamples < 1:
        raise ConfigError(f"resamples={resamples}: give at least 1 (10,000 is usual)")
    means = _resampled_means(rows, generator, resamples)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(rows.mean()), float(low), float(high), level, rows.size, resamples)


def bootstrap_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """The interval of mean(first - second) where both hold values of the same rows, in order.

    Paired: a row that is hard for both arms cancels, so the interval is narrower than that of
    two separate samples. Raises as `bootstrap_mean`, and DataError for unequal lengths.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(
            f"a paired difference needs the same rows twice; got {a.shape} and {b.shape} values"
        )
    return bootstrap_mean(a - b, generator=generator, level=level, resamples=resamples)


def _resampled_means(
    rows: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    means = np.empty(resamples)
    block = max(1, _DRAWS_AT_ONCE // rows.size)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        picks = generator.integers(rows.size, size=(stop - start, rows.size))
        means[start:stop] = rows[picks].mean(axis=1)
    return means
