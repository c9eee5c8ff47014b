"""An arm beside the reference: what may be said of it, by one rule for every measure.

Each measure has a margin that was named before the comparison (`CompareSpec.margins`), an interval of
its difference, and the verdict that both allow (`lorakit.evaluation.verdict`). Where several arms are
held against one reference, the intervals of a measure hold together with their level.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorakit.comparing import differences as apart
from lorakit.comparing import wording
from lorakit.comparing.protocol import ArmFindings, CompareFindings
from lorakit.comparing.spec import CompareSpec
from lorakit.evaluation.crossed import CrossedInterval
from lorakit.evaluation.verdict import LEVEL, Verdict, judge, share_of_level

_SEEDS = "more --seeds"
_ROWS = "more held-out rows (--eval-data or a larger --eval-share)"
_ANSWERS = "more answers (--samples)"
_GENERAL = "more general rows (--general-data)"


def figure(values: apart.ByRow, d: CrossedInterval | None = None) -> dict[str, Any]:
    """A mean with its interval; without ends where there are too few rows for one.

    Args:
        values: by seed and row.
        d: the interval of their mean, where it is another than that of 95 %.
    """
    d = apart.interval(values) if d is None else d
    if d is not None:
        return d.to_dict()
    seeds, rows = values[0].shape
    none = dict.fromkeys(("low", "high", "level", "of_rows"))
    return {"mean": apart.mean(values), **none, "seeds": seeds, "rows": rows, "resamples": 0}


def difference(
    trained: ArmFindings,
    arm: Mapping[str, Any],
    against: ArmFindings,
    reference: Mapping[str, Any],
    findings: CompareFindings,
    spec: CompareSpec,
) -> dict[str, Any]:
    """What stands between an arm and the reference, as result.json has it.

    Args:
        trained, against: the arm and the reference.
        arm, reference: their figures.
        findings: all that was measured.
        spec: with the margins.
    """
    level = share_of_level(LEVEL, len(findings.arms) - 1)
    names = trained.arm.name, against.arm.name
    loss, verdict, gain = _loss(trained, against, findings, spec, level)
    kept = 1 - loss["mean"] / gain if gain > 0 else None
    kl, moved, ratio = _forgetting(trained, against, spec, level)
    general = _apart(apart.moved(trained, "loss"), apart.moved(against, "loss"), level)[0]
    costs = {
        name: judge(
            apart.measured_ratio(ours, theirs, level),
            math.log1p(spec.cost_margin),
            least_rows=0,
            more_seeds=_SEEDS,
        )
        for name, ours, theirs in (
            ("peak_memory_bytes", _peaks(trained), _peaks(against)),
            ("seconds_per_step", _paces(trained), _paces(against)),
        )
    }
    shares = {
        f"{name}_share": arm["measured"][name] / reference["measured"][name]
        for name in ("peak_memory_bytes", "seconds_per_step", "train_seconds")
    }
    sentence = (
        f"{names[0]} {wording.memory(arm, reference, costs['peak_memory_bytes'])}; "
        f"{wording.quality(verdict, loss, kept)}; "
        f"{wording.forgetting(arm, reference, moved, ratio)}."
    )
    return {
        "arm": names[0],
        "against": names[1],
        "loss": loss,
        "kl": kl | {"verdict": moved.to_dict(), "ratio": None if ratio is None else list(ratio)},
        "general_loss": general,
        "scores": _scores(trained, against, findings, spec, level),
        "rate_ratio": trained.rate / against.rate,
        "fewer_parameters": 1 - arm["trainable_parameters"] / reference["trainable_parameters"],
        "verdict": verdict.to_dict()
        | {
            "gain": gain,
            "gain_kept": kept,
            "words": wording.judgement(verdict, names[1], spec.margin),
        },
        "measured": shares
        | {
            "verdicts": {name: each.to_dict() for name, each in costs.items()},
            "sentence": sentence,
        },
    }


def _apart(
    ours: apart.ByRow, theirs: apart.ByRow, level: float
) -> tuple[dict[str, Any], CrossedInterval | None]:
    d = apart.difference(ours, theirs, level)
    return figure((ours[0] - theirs[0], ours[1]), d), d


def _loss(
    trained: ArmFindings,
    against: ArmFindings,
    findings: CompareFindings,
    spec: CompareSpec,
    level: float,
) -> tuple[dict[str, Any], Verdict, float]:
    """Held-out loss: the difference, the verdict, and what the reference gained over the base."""
    ours, theirs = apart.losses(trained), apart.losses(against)
    base = findings.base.held_out
    before_N = np.array(base.nats) / np.array(base.tokens)
    gain = apart.gain((np.broadcast_to(before_N, theirs[0].shape), theirs[1]), theirs)
    plain, d = _apart(ours, theirs, level)
    verdict = judge(
        d,
        spec.margin * gain if gain > 0 else None,
        rows_measured=plain["rows"],
        more_seeds=_SEEDS,
        more_rows=_ROWS,
    )
    return plain, verdict, gain


def _forgetting(
    trained: ArmFindings, against: ArmFindings, spec: CompareSpec, level: float
) -> tuple[dict[str, Any], Verdict, tuple[float, float] | None]:
    """KL from the base: the difference, the verdict, and the interval of the ratio."""
    ours, theirs = apart.moved(trained, "kl"), apart.moved(against, "kl")
    plain, d = _apart(ours, theirs, level)
    verdict = judge(
        d,
        spec.forgetting_margin * max(0.0, apart.mean(theirs)),
        rows_measured=plain["rows"],
        more_seeds=_SEEDS,
        more_rows=_GENERAL,
    )
    return plain, verdict, apart.ratio(ours, theirs, level) if verdict.told else None


def _scores(
    trained: ArmFindings,
    against: ArmFindings,
    findings: CompareFindings,
    spec: CompareSpec,
    level: float,
) -> dict[str, Any]:
    """Every metric: the difference and the verdict."""
    runs, others = ([run.result for run in each.runs] for each in (trained, against))
    intervals = apart.score_differences(runs, others, findings.base.references, level)
    return {
        name: d.to_dict()
        | {
            "verdict": judge(
                d,
                spec.score_margin,
                lower_is_better=False,
                more_seeds=_SEEDS,
                more_rows=_ANSWERS,
            ).to_dict()
        }
        for name, d in intervals.items()
    }


def _peaks(arm: ArmFindings) -> list[float]:
    return [run.result.measured.peak_memory_bytes for run in arm.runs]


def _paces(arm: ArmFindings) -> list[float]:
    return [run.result.measured.pace.seconds_per_step or 0.0 for run in arm.runs]
