"""Findings -> result.json: the answer first, then the evidence it rests on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.evaluation.crossed import crossed_mean
from lorakit.experiments.records import to_json
from lorakit.ranking import wording
from lorakit.ranking.choose import Measured, generator
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.pairs import spectra_of
from lorakit.ranking.protocol import RankFindings
from lorakit.ranking.search import Candidate, Evidence
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import AdapterRef, RankProfile

# Held-out rows below which a note asks for more.
_FEW_ROWS = 100
_SEARCH_PHASES = ("profile", "probe", "noise", "search", "metric")


def summarise(findings: RankFindings, spec: RankSpec, command: str, root: Path) -> dict[str, Any]:
    """All figures of a search; docs/rank.md says what they mean.

    Args:
        findings: of the search.
        spec: its settings.
        command: how to repeat it.
        root: of the trials.
    """
    ranks, lab, search = findings.profile, findings.lab, findings.search
    profile, rank = ranks.profile, findings.rank
    spectrum_rank, spectrum_of = _spectrum_source(findings)
    return {
        "command": command,
        "model": profile.identity["name"],
        "recommended_rank": rank,
        "adapter": "adapter",
        "kind": findings.choice.kind,
        "words": _words(findings),
        "confidence": findings.choice.confidence,
        "loss": findings.measured.loss,
        "base_loss": ranks.base_loss,
        "base_rows": ranks.base_rows,
        "learning_rate": findings.probed.rate,
        "trainable_parameters": ranks.parameters(rank),
        "parameters_of_max_rank": ranks.parameters(spec.ranks[-1]),
        "tolerance": _tolerance(findings),
        "method": spec.method,
        "level": spec.level,
        "ranks": list(spec.ranks),
        "steps": ranks.steps,
        "reference": search.reference,
        "gaps": _gaps(findings),
        "evidence": [_evidence(each, ranks, spec) for each in search.evidence],
        "decisions": [wording.sentence(each) for each in search.decisions],
        "curves": [_curve(lab, candidate) for candidate in lab.curves],
        "spectra": {
            "rank": spectrum_rank,
            "values": spectra_of(root / spectrum_of.trial / spectrum_of.adapter),
        },
        "probe": to_json(findings.probed.points),
        "probe_rank": findings.probed.rank,
        "rate_at_edge": findings.probed.at_edge,
        "prior": to_json(ranks.prior),
        "cost": _cost(findings),
        "metric": _metric(findings),
        "layers": _layers(findings),
        "verified": _verified(findings),
        "grid": _grid(findings),
        "rows": profile.rows,
        "eval_rows": profile.eval_rows,
        "template": dict(profile.template),
        "data_sha256": profile.data_sha256,
        "base_sha256": profile.base_sha256,
        "versions": dict(profile.versions),
        "data_notes": list(profile.notes),
        "notes": _notes(findings),
        "measured": {"machine": dict(profile.machine)},
    }


def _tolerance(findings: RankFindings) -> dict[str, Any]:
    tolerance = findings.tolerance
    return {
        "share": tolerance.share,
        "nats": tolerance.nats(findings.search.pair[1].loss),
        "noise": tolerance.noise,
        "runs": tolerance.runs,
        "words": wording.tolerance(tolerance),
    }


def _gaps(findings: RankFindings) -> dict[str, Any]:
    return {
        str(rank): d.to_dict() | {"state": findings.choice.states[rank]}
        for rank, d in sorted(findings.search.gaps.items())
    }


def _evidence(each: Evidence, ranks: RankProfile, spec: RankSpec) -> dict[str, Any]:
    return {
        "rank": each.rank,
        "how": each.how,
        "share": each.share,
        "parameters": ranks.parameters(each.rank),
        "rows": len(each.measured.tokens_N),
        **_ends(each.measured, spec.level),
    }


def _curve(lab: TrialLab, candidate: Candidate) -> dict[str, Any]:
    return {
        "rank": candidate.rank,
        "rate": candidate.rate,
        "seed": candidate.seed,
        "by_layer": bool(candidate.pattern),
        "train": lab.curves[candidate],
        "held_out": [
            {"step": step, "loss": point.loss, "rows": len(point.tokens_N)}
            for step, point in sorted(lab.points[candidate].items())
        ],
    }


def _cost(findings: RankFindings) -> dict[str, Any]:
    """In runs at the highest rank, the checks left out and included."""
    ledger, whole = findings.lab.ledger, findings.profile.run_flops
    answer = sum(ledger.flops.get(phase, 0.0) for phase in _SEARCH_PHASES)
    return {
        "runs": answer / whole,
        "with_checks": ledger.spent,
        # result.json has always called the profile "look".
        "flops": {
            "look" if phase == "profile" else phase: flops for phase, flops in ledger.flops.items()
        },
        "flops_of_one_run": whole,
    }


def _words(findings: RankFindings) -> str:
    """The answer in a few sentences."""
    sentences = [wording.choice(findings.choice)]
    if findings.rate_effect is not None:
        sentences.append(wording.rate_matters(findings.rate_effect))
    if findings.scored is not None:
        sentences.append(wording.scored(findings.scored, findings.search.rank))
    if findings.layered is not None:
        sentences.append(wording.layered(findings.layered))
    if findings.verified is not None:
        sentences.append(wording.verified(findings.verified))
    if findings.grid is not None:
        sentences.append(wording.grid(findings.grid))
    return " ".join(sentences)


def _ends(point: Measured, level: float) -> dict[str, float]:
    """Loss with its interval over rows; each end is a one-sided bound of the level."""
    values = (point.nats_N / point.tokens_N)[None]
    d = crossed_mean(
        values, point.tokens_N, generator=generator(), level=2 * level - 1, resamples=1000
    )
    return {"loss": point.loss, "low": d.low, "high": d.high}


def _spectrum_source(findings: RankFindings) -> tuple[int, AdapterRef]:
    """The adapter whose singular values the page shows: of the highest rank that was trained."""
    points = findings.lab.points
    trained = [candidate for candidate in points if not candidate.pattern]
    if not trained:
        return findings.rank, findings.adapter
    highest = max(trained, key=lambda each: (each.rank, max(points[each]), -each.seed))
    return highest.rank, findings.lab.adapter(highest)


def _metric(findings: RankFindings) -> dict[str, Any] | None:
    scored = findings.scored
    if scored is None:
        return None
    return {
        "name": scored.metric,
        "scores": {str(rank): value for rank, value in scored.scores.items()},
        "gaps": {str(rank): d.to_dict() for rank, d in scored.gaps.items()},
        "rank": scored.rank,
        "rank_by_loss": findings.search.rank,
    }


def _layers(findings: RankFindings) -> dict[str, Any] | None:
    layered = findings.layered
    if layered is None:
        return None
    return {
        "ranks": dict(layered.ranks),
        "evidence": f"singular values of an adapter of rank {layered.evidence}",
        "difference": layered.difference.to_dict(),
        "loss": layered.loss,
        "wins": layered.wins,
    }


def _verified(findings: RankFindings) -> dict[str, Any] | None:
    verified = findings.verified
    if verified is None:
        return None
    return {
        "seed": verified.seed,
        "losses": {str(rank): loss for rank, loss in verified.losses.items()},
        "gaps": {str(rank): d.to_dict() for rank, d in verified.gaps.items()},
        "best": verified.best,
        "held": verified.held,
    }


def _grid(findings: RankFindings) -> dict[str, Any] | None:
    grid = findings.grid
    if grid is None:
        return None
    return {
        "losses": [
            {"rank": rank, "rate": rate, "losses": list(losses)}
            for (rank, rate), losses in grid.losses.items()
        ],
        "best": {"rank": grid.best_rank, "rate": grid.best_rate},
        "seed_noise": grid.noise,
        "regret": grid.regret,
        "regret_share": grid.regret / _mean_best(grid.losses),
    }


def _mean_best(losses: Mapping[tuple[int, float], tuple[float, ...]]) -> float:
    return min(math.fsum(each) / len(each) for each in losses.values())


def _notes(findings: RankFindings) -> list[str]:
    ranks, notes = findings.profile, []
    if ranks.estimate.note:
        notes.append(ranks.estimate.note)
    if findings.probed.at_edge:
        notes.append(wording.rate_at_edge(findings.probed.rate))
    if ranks.profile.eval_rows < _FEW_ROWS:
        notes.append(wording.few_rows(ranks.profile.eval_rows))
    notes.append(wording.prior(ranks.prior))
    share = ranks.parameters(findings.rank) / max(ranks.trainable.values())
    notes.append(wording.adapter_share(share))
    return notes
