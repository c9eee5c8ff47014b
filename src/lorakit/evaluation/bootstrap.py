"""Confidence intervals of a mean over rows, valid for few rows too.

Each end is the farther one of Student's t and of the bootstrap of t (see `crossed`): a percentile
interval over 8 rows of 95 % holds the true mean in 88 of 100 cases (normal values), in 79 (skewed ones).
Scores lie in a range: with `bounds` given, rows that all have the same score still have an interval.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.errors import ConfigError, DataError
from lorakit.evaluation.crossed import Bounds, crossed_mean


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, all three in the unit of the values."""

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
    resamples: int = 1000,
    bounds: Bounds | None = None,
) -> Interval:
    """The interval of the mean of one value a row.

    Args:
        values: of the rows.
        generator: of the draws; the same state gives the same interval.
        level: share of such intervals that cover the true mean.
        resamples: bootstrap draws.
        bounds: between which every value lies, such as (0, 1) for a share.

    Raises:
        DataError: fewer than two rows, or a value that is not finite.
        ConfigError: a level outside (0, 1), or no resamples.
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
        raise ConfigError(f"resamples={resamples}: give at least 1 (1,000 is usual)")
    d = crossed_mean(
        rows[None], generator=generator, level=level, resamples=resamples, bounds=bounds
    )
    return Interval(d.mean, d.low, d.high, level, rows.size, resamples)


def bootstrap_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1000,
    bounds: Bounds | None = None,
) -> Interval:
    """The interval of mean(first - second) where both hold values of the same rows, in order.

    Paired: a row that is hard for both arms cancels, so the interval is narrower than that of
    two separate samples. `bounds` are those of a difference, such as (-1, 1) for two shares. Raises
    as `bootstrap_mean`, and DataError for unequal lengths.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(
            f"a paired difference needs the same rows twice; got {a.shape} and {b.shape} values"
        )
    return bootstrap_mean(
        a - b, generator=generator, level=level, resamples=resamples, bounds=bounds
    )
