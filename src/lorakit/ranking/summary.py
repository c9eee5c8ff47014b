"""Findings -> result.json: the answer first, then the evidence it rests on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorakit.evaluation.crossed import crossed_mean
from lorakit.evaluation.verdict import LEAST_ROWS
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.records import to_json
from lorakit.ranking import wording
from lorakit.ranking.bracket import RankCompared
from lorakit.ranking.choose import Gap, generator
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.pairs import spectra_of
from lorakit.ranking.spec import RankSpec

if TYPE_CHECKING:
    from lorakit.ranking.command import RankFindings

_SEARCH_PHASES = ("profile", "probe", "noise", "search", "metric")
_CHECKS = ("metric", "layers", "verified", "grid")


def summarise(findings: "RankFindings", spec: RankSpec, command: str, root: Path) -> dict[str, Any]:
    """All figures of a search; docs/rank.md says what they mean.

    Args:
        findings: of the search.
        spec: its settings.
        command: how to repeat it.
        root: of the trials.
    """
    lab, choice, tolerance = findings.lab, findings.search.choice, findings.tolerance
    ranks, profile, rank = lab.profile, lab.profile.profile, findings.rank
    compared = [each for each in findings.search.decisions if isinstance(each, RankCompared)]
    shares = {each.rank: (each.share, each.how) for each in compared}
    reference_loss = choice.tolerance / tolerance.share
    return {
        "command": command,
        "model": profile.identity["name"],
        "recommended_rank": rank,
        "adapter": "adapter",
        "kind": choice.kind,
        "words": wording.answer(findings),
        "confidence": choice.confidence,
        "loss": findings.losses.loss,
        "base_loss": ranks.base_loss,
        "base_rows": ranks.base_rows,
        "learning_rate": findings.probed.rate,
        "trainable_parameters": ranks.parameters(rank),
        "parameters_of_max_rank": ranks.parameters(spec.ranks[-1]),
        "tolerance": {
            "share": tolerance.share,
            "nats": choice.tolerance,
            "noise": tolerance.noise,
            "runs": tolerance.runs,
            "words": wording.tolerance(tolerance),
        },
        "margin": {
            "share": tolerance.margin,
            "nats": tolerance.margin * reference_loss,
            "words": wording.margin(spec.share()),
        },
        "method": spec.method,
        "level": spec.level,
        "ranks": list(spec.ranks),
        "steps": ranks.steps,
        "reference": choice.reference,
        "gaps": {
            str(each): _gap(gap, shares.get(each)) for each, gap in sorted(choice.gaps.items())
        },
        "evidence": [
            {
                "rank": each.rank,
                "how": each.how,
                "share": each.share,
                "parameters": ranks.parameters(each.rank),
                "rows": len(each.losses.nats),
                **_ends(each.losses, spec.level),
            }
            for each in findings.search.evidence
        ],
        "decisions": [wording.sentence(each) for each in findings.search.decisions],
        "curves": _curves(lab),
        "spectra": _spectra(findings, root),
        "probe": to_json(findings.probed.points),
        "probe_rank": findings.probed.rank,
        "rate_at_edge": findings.probed.at_edge,
        "prior": to_json(ranks.prior),
        "cost": _cost(lab)
        | {"at_most": findings.expenses.most, "checks_at_most": findings.expenses.checks},
        "too_short": list(findings.expenses.short),
        **{name: to_json(findings.checks.get(name)) for name in _CHECKS},
        "rows": profile.rows,
        "eval_rows": profile.eval_rows,
        "template": dict(profile.template),
        "data_sha256": profile.data_sha256,
        "base_sha256": profile.base_sha256,
        "versions": dict(profile.versions),
        "data_notes": list(profile.notes),
        "notes": wording.notes(findings),
        "measured": {"machine": dict(profile.machine)},
    }


def _gap(gap: Gap, at: tuple[float, str] | None) -> dict[str, Any]:
    """A rank beside the reference: after which share of a run, what may be said, and by what the search went on."""
    d = gap.verdict.difference
    ends = {"mean": gap.difference.mean} | dict.fromkeys(("low", "high", "level"))
    if d is not None:
        ends = {name: getattr(d, name) for name in ("mean", "low", "high", "level")}
    share, how = at or (1.0, "trained")
    return {
        **ends,
        "share": share,
        "how": how,
        "rows": gap.difference.rows,
        "verdict": gap.verdict.to_dict(),
        "rule": {
            "low": gap.difference.low,
            "high": gap.difference.high,
            "tolerance": gap.tolerance,
            "state": gap.state,
        },
    }


def _ends(rows: RowLosses, level: float) -> dict[str, float | None]:
    """Loss with its interval over rows; each end is a one-sided bound of the level. No ends of few rows."""
    if len(rows.nats) < LEAST_ROWS:
        return {"loss": rows.loss, "low": None, "high": None}
    tokens_N = np.array(rows.tokens)
    values_N = np.array(rows.nats) / tokens_N
    d = crossed_mean(values_N[None], tokens_N, generator=generator(), level=2 * level - 1)
    return {"loss": rows.loss, "low": d.low, "high": d.high}


def _curves(lab: TrialLab) -> list[dict[str, Any]]:
    """Of each run: training loss of every step, and held-out loss where it was measured."""
    return [
        {
            "rank": candidate.rank,
            "rate": candidate.rate,
            "seed": candidate.seed,
            "by_layer": bool(candidate.pattern),
            "train": train,
            "held_out": [
                {"step": step, "loss": rows.loss, "rows": len(rows.nats)}
                for step, rows in sorted(lab.points[candidate].items())
            ],
        }
        for candidate, train in lab.curves.items()
    ]


def _spectra(findings: "RankFindings", root: Path) -> dict[str, Any]:
    """Singular values of the highest rank that was trained."""
    rank, adapter, points = findings.rank, findings.adapter, findings.lab.points
    trained = [candidate for candidate in points if not candidate.pattern]
    if trained:
        highest = max(trained, key=lambda each: (each.rank, max(points[each]), -each.seed))
        rank, adapter = highest.rank, findings.lab.adapter(highest)
    return {"rank": rank, "values": spectra_of(adapter.folder(root))}


def _cost(lab: TrialLab) -> dict[str, Any]:
    """In runs at the highest rank, the checks left out and included."""
    whole = lab.profile.run_flops
    return {
        "runs": sum(lab.flops.get(phase, 0.0) for phase in _SEARCH_PHASES) / whole,
        "with_checks": lab.spent,
        # result.json has always called the profile "look".
        "flops": {
            "look" if phase == "profile" else phase: flops for phase, flops in lab.flops.items()
        },
        "flops_of_one_run": whole,
    }
