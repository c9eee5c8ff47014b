"""An arm beside the reference arm: differences with their intervals, paired by seed and by row."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.comparing.protocol import ArmFindings
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, crossed_statistic
from lorakit.evaluation.metrics import score

Floats = NDArray[np.float64]
LEVEL = 0.95


def _generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)


def losses(arm: ArmFindings) -> tuple[Floats, Floats]:
    """Nats per token of each held-out row by seed, (K, N), and the tokens of each row, (N,)."""
    tokens_N = np.array(arm.runs[0].result["row_tokens"])
    return np.array([run.result["rows"] for run in arm.runs]) / tokens_N, tokens_N


def moved(arm: ArmFindings, name: str) -> tuple[Floats, Floats]:
    """The same on the general rows: "kl" or "loss" in nats per token, (K, N), and tokens."""
    tokens_N = np.array(arm.runs[0].result["general"]["tokens"])
    values = np.array([run.result["general"][name] for run in arm.runs])
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


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each metric of an arm's answers: its mean over the seeds, and that of each seed."""
    first = runs[0]["scores"]
    if first is None:
        return {}
    found = {}
    for at, metric in enumerate(first["metrics"]):
        values = [run["scores"]["metrics"][at]["value"] for run in runs]
        found[metric["name"]] = {
            "mean": fmean(values),
            "seeds": values,
            "unit": metric["unit"],
            "n": metric["n"],
        }
    return found


def score_differences(
    arm: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]],
    references: Sequence[str],
) -> dict[str, CrossedInterval]:
    """Of every metric, arm - against; positive is better.

    A metric that is a mean over rows is resampled as such; one of the whole set (BLEU, chrF,
    macro-F1) is computed again on the rows of each draw.
    """
    if arm[0]["scores"] is None or len(references) < 2:
        return {}
    found = {}
    for at, metric in enumerate(arm[0]["scores"]["metrics"]):
        ours, theirs = ([r["scores"]["metrics"][at] for r in runs] for runs in (arm, against))
        if metric["mean_of_rows"]:
            values = np.array([m["rows"] for m in ours]) - np.array([m["rows"] for m in theirs])
            found[metric["name"]] = crossed_mean(values, generator=_generator(), level=LEVEL)
        else:
            found[metric["name"]] = _of_set(metric["name"], arm, against, references)
    return found


def _of_set(
    name: str,
    arm: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]],
    references: Sequence[str],
) -> CrossedInterval:
    def apart(seed: int, rows: NDArray[np.int64]) -> float:
        wanted = [references[i] for i in rows]
        made = ([runs[seed]["answers"][i] for i in rows] for runs in (arm, against))
        ours, theirs = (score(each, wanted, name).metrics[0].value for each in made)
        return ours - theirs

    return crossed_statistic(apart, len(arm), len(references), generator=_generator(), level=LEVEL)
