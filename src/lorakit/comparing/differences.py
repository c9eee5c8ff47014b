"""An arm beside the reference arm: differences with their intervals, paired by seed and by row."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.comparing.protocol import ArmFindings
from lorakit.comparing.trials import RunResult
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, crossed_statistic
from lorakit.evaluation.metrics import again
from lorakit.evaluation.scores import Scores

Floats = NDArray[np.float64]
LEVEL = 0.95


def _generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)


def losses(arm: ArmFindings) -> tuple[Floats, Floats]:
    """Nats per token of each held-out row by seed, (K, N), and the tokens of each row, (N,)."""
    held_out = [run.result.held_out for run in arm.runs]
    tokens_N = np.array(held_out[0].tokens)
    return np.array([each.nats for each in held_out]) / tokens_N, tokens_N


def moved(arm: ArmFindings, name: Literal["kl", "loss"]) -> tuple[Floats, Floats]:
    """The same on the general rows: "kl" or "loss" in nats per token, (K, N), and tokens."""
    general = [run.result.general for run in arm.runs]
    tokens_N = np.array(general[0].tokens)
    values = np.array([each.kl if name == "kl" else each.loss for each in general])
    return values / tokens_N, tokens_N


def interval(values: tuple[Floats, Floats]) -> CrossedInterval | None:
    """Of one arm's own mean; None where fewer than two rows were measured."""
    if values[0].shape[1] < 2:
        return None
    return crossed_mean(values[0], values[1], generator=_generator(), level=LEVEL)


def difference(
    arm: tuple[Floats, Floats], against: tuple[Floats, Floats]
) -> CrossedInterval | None:
    """Of arm - against, seed by seed and row by row."""
    return interval((arm[0] - against[0], arm[1]))


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
) -> dict[str, CrossedInterval]:
    """Of every metric, arm - against; positive is better.

    A metric that is a mean over rows is resampled as such; one of the whole set (BLEU, chrF,
    macro-F1) is computed again on the rows of each draw.
    """
    scored = _scores(arm)
    if not scored or len(references) < 2:
        return {}
    intervals = {}
    for name, metric in ((each.name, each) for each in scored[0]):
        if metric.mean_of_rows:
            ours, theirs = ([s[name].rows for s in _scores(runs)] for runs in (arm, against))
            values = np.array(ours) - np.array(theirs)
            intervals[name] = crossed_mean(values, generator=_generator(), level=LEVEL)
        else:
            intervals[name] = _of_set(name, arm, against, references)
    return intervals


def _of_set(
    name: str,
    arm: Sequence[RunResult],
    against: Sequence[RunResult],
    references: Sequence[str],
) -> CrossedInterval:
    def apart(seed: int, rows: NDArray[np.int64]) -> float:
        drawn_references = [references[i] for i in rows]
        texts = ([runs[seed].answers[i] for i in rows] for runs in (arm, against))
        ours, theirs = (again(name, each, drawn_references) for each in texts)
        return ours - theirs

    return crossed_statistic(apart, len(arm), len(references), generator=_generator(), level=LEVEL)
