"""An arm beside the reference arm: differences with their intervals, paired by seed and by row."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.comparing.protocol import ArmFindings
from lorakit.comparing.trials import RunResult
from lorakit.evaluation.crossed import Bounds, CrossedInterval, crossed_mean, crossed_statistic
from lorakit.evaluation.metrics import again
from lorakit.evaluation.scores import MetricScore, Scores
from lorakit.evaluation.verdict import LEAST_ROWS, LEVEL

Floats = NDArray[np.float64]
ByRow = tuple[Floats, Floats]
"""Values by seed and row, (K, N), and the weight of each row, (N,)."""

# Ratios that are tried for an interval of one: from a thousandth to a thousand times.
_RATIOS = np.geomspace(1e-3, 1e3, 241)


def _generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)


def losses(arm: ArmFindings) -> ByRow:
    """Nats per token of each held-out row by seed, (K, N), and the tokens of each row, (N,)."""
    held_out = [run.result.held_out for run in arm.runs]
    tokens_N = np.array(held_out[0].tokens)
    return np.array([each.nats for each in held_out]) / tokens_N, tokens_N


def moved(arm: ArmFindings, name: Literal["kl", "loss"]) -> ByRow:
    """The same on the general rows: "kl" or "loss" in nats per token, (K, N), and tokens."""
    general = [run.result.general for run in arm.runs]
    tokens_N = np.array(general[0].tokens)
    values = np.array([each.kl if name == "kl" else each.loss for each in general])
    return values / tokens_N, tokens_N


def mean(values: ByRow) -> float:
    """Over seeds and rows, weighted."""
    return float((values[0] @ values[1] / values[1].sum()).mean())


def interval(
    values: ByRow, level: float = LEVEL, *, resamples: int = 1000
) -> CrossedInterval | None:
    """Of an arm's own mean, or of a difference; None where fewer than `LEAST_ROWS` were measured."""
    if values[0].shape[1] < LEAST_ROWS:
        return None
    return crossed_mean(
        values[0], values[1], generator=_generator(), level=level, resamples=resamples
    )


def difference(arm: ByRow, against: ByRow, level: float = LEVEL) -> CrossedInterval | None:
    """Of arm - against, seed by seed and row by row."""
    return interval((arm[0] - against[0], arm[1]), level)


def gain(base: ByRow, arm: ByRow) -> float:
    """What an arm gained over the base, in nats per token; 0 where rows and seeds do not show that it did."""
    d = interval((base[0] - arm[0], arm[1]))
    return d.mean if d is not None and d.low > 0 else 0.0


def ratio(arm: ByRow, against: ByRow, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of mean(arm) / mean(against): every ratio r for which arm - r · against may be 0.

    Fieller's (1954) interval, with this house's interval of a mean in the place of Student's. None
    where it has no end, because `against` may be 0 itself, or where there are too few rows.
    """
    within = []
    for r in _RATIOS:
        d = interval((arm[0] - r * against[0], arm[1]), level, resamples=0)
        if d is None:
            return None
        within.append(d.covers(0.0))
    if not any(within) or within[0] or within[-1]:
        return None
    at = np.flatnonzero(within)
    return float(_RATIOS[at[0] - 1]), float(_RATIOS[at[-1] + 1])


def measured_ratio(
    ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL
) -> CrossedInterval | None:
    """log(ours / theirs) of what processes took, such as bytes or seconds, one value a seed.

    Welch's (1947) interval of the difference of the means of the logarithms. None for a single
    process an arm, or for a value that is 0.
    """
    if min(len(ours), len(theirs)) < 2 or min(*ours, *theirs) <= 0:
        return None
    from scipy import stats

    a, b = np.log(ours), np.log(theirs)
    apart = float(a.mean() - b.mean())
    low = high = apart
    if np.ptp(a) > 0 or np.ptp(b) > 0:
        found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
        low, high = float(found.low), float(found.high)
    return CrossedInterval(apart, low, high, level, min(len(a), len(b)), 0, 0.0, 0)


def scores(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """Each metric of an arm's answers: its mean over the seeds, and that of each seed."""
    scored = _scores(runs)
    means = {}
    for metric in scored[0] if scored else ():
        values = [each[metric.name].value for each in scored]
        means[metric.name] = {
            "mean": fmean(values),
            "seeds": values,
            "unit": metric.unit,
            "n": metric.n,
        }
    return means


def _scores(runs: Sequence[RunResult]) -> list[Scores]:
    """Of each seed; none where nothing can be asked."""
    return [run.scores for run in runs if run.scores is not None]


def score_differences(
    arm: Sequence[RunResult],
    against: Sequence[RunResult],
    references: Sequence[str],
    level: float = LEVEL,
) -> dict[str, CrossedInterval]:
    """Of every metric, arm - against; positive is better. None where fewer than `LEAST_ROWS` answered.

    A metric that is a mean over rows is resampled as such; one of the whole set (BLEU, chrF,
    macro-F1) is computed again on the rows of each draw.
    """
    scored = _scores(arm)
    if not scored or len(references) < LEAST_ROWS:
        return {}
    intervals = {}
    for name, metric in ((each.name, each) for each in scored[0]):
        bounds = _bounds(metric)
        if metric.mean_of_rows:
            ours, theirs = ([s[name].rows for s in _scores(runs)] for runs in (arm, against))
            values = np.array(ours) - np.array(theirs)
            intervals[name] = crossed_mean(
                values, generator=_generator(), level=level, bounds=bounds
            )
        else:
            intervals[name] = _of_set(name, arm, against, references, level, bounds)
    return intervals


def _bounds(metric: MetricScore) -> Bounds:
    """Of a difference of two scores."""
    low, high = metric.range
    return low - high, high - low


def _of_set(
    name: str,
    arm: Sequence[RunResult],
    against: Sequence[RunResult],
    references: Sequence[str],
    level: float,
    bounds: Bounds,
) -> CrossedInterval:
    def apart(seed: int, rows: NDArray[np.int64]) -> float:
        drawn_references = [references[i] for i in rows]
        texts = ([runs[seed].answers[i] for i in rows] for runs in (arm, against))
        ours, theirs = (again(name, each, drawn_references) for each in texts)
        return ours - theirs

    return crossed_statistic(
        apart, len(arm), len(references), generator=_generator(), level=level, bounds=bounds
    )
