"""Findings -> result.json: what is the same however often the comparison is repeated, and what not.

Whatever lies under a key "measured", at any depth, is seconds or bytes that a process took, or is
made from such; everything else follows from rows, base, settings and software alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lorakit.comparing import differences as apart
from lorakit.comparing import judging, wording
from lorakit.comparing.costs import costs, points
from lorakit.comparing.methods import Arm
from lorakit.comparing.protocol import ArmFindings, CompareFindings
from lorakit.comparing.spec import CompareSpec
from lorakit.comparing.trials import BaseResult, RunResult
from lorakit.config import RunConfig
from lorakit.evaluation.verdict import LEVEL, share_of_level
from lorakit.experiments.experiment import TRIALS
from lorakit.experiments.rates import at_edge, rounds
from lorakit.experiments.records import to_json

# The best learning rate of LoRA over that of full fine-tuning, as published ("LoRA Without
# Regret", Thinking Machines 2025).
PUBLISHED_RATIO = 10.0


def summarise(
    findings: CompareFindings, spec: CompareSpec, config: RunConfig, command: str
) -> dict[str, Any]:
    """All figures of a comparison; docs/compare.md has a line for each."""
    profile, base = findings.profile.profile, findings.base
    reference = reference_arm([each.arm for each in findings.arms])
    arms = [_arm(each, findings) for each in findings.arms]
    at = [each.arm for each in findings.arms].index(reference)
    differences = [
        judging.difference(each, arms[i], findings.arms[at], arms[at], findings, spec)
        for i, each in enumerate(findings.arms)
        if i != at
    ]
    return {
        "command": command,
        "model": profile.identity["name"],
        "dtype": profile.dtype,
        "total_parameters": profile.shape.total_parameters,
        "rows": profile.rows,
        "tuning_rows": findings.profile.validation_rows,
        "eval_rows": profile.eval_rows,
        "tokens_per_step": profile.tokens_per_step,
        "seeds": list(findings.seeds),
        "protocol": {
            "budget": str(spec.parsed_budget()),
            "batch_size": config.train.batch_size,
            "batch_tokens": config.train.batch_tokens,
            "schedule": config.train.schedule,
            "rates": spec.rates,
            "rate_factor": spec.rate_factor,
            "rounds": [
                [asdict(one) for one in rounds(spec.rates, spec.probe_share, a.steps)]
                for a in findings.arms
            ],
            "evaluations": spec.evaluations,
            "margin": spec.margin,
            "margins": spec.margins,
            "level": LEVEL,
            "level_of_each_arm": share_of_level(LEVEL, len(arms) - 1),
            "workers": spec.workers,
        },
        "base": _base(base),
        "reference": reference.name,
        "arms": arms,
        "differences": differences,
        "published_rate_ratio": PUBLISHED_RATIO,
        "template": dict(profile.template),
        "data_sha256": profile.data_sha256,
        "base_sha256": profile.base_sha256,
        "versions": dict(profile.versions),
        "data_notes": list(profile.notes),
        "notes": _notes(findings, arms),
        "measured": {
            "headline": _headline(differences),
            "machine": dict(profile.machine),
        },
    }


def reference_arm(arms: Sequence[Arm]) -> Arm:
    """What the others are held against: full fine-tuning, or the first where none is."""
    return next((arm for arm in arms if arm.method.kind == "full"), arms[0])


def _base(base: BaseResult) -> dict[str, Any]:
    general = to_json(base.general)
    del general["texts"]
    scores = base.scores
    return {
        "loss": base.held_out.loss,
        "scores": scores.values if scores is not None else {},
        "why_scores": scores.why if scores is not None else wording.NOTHING_ASKED,
        "general": general,
    }


def _arm(trained: ArmFindings, findings: CompareFindings) -> dict[str, Any]:
    runs = [run.result for run in trained.runs]
    full = next((a for a in findings.arms if a.arm.method.kind == "full"), None)
    base_bytes = None if full is None else round(fmean(r.result.bytes_on_disk for r in full.runs))
    targets = {
        other.arm.name: fmean(run.result.loss for run in other.runs)
        for other in findings.arms
        if other.arm != trained.arm
    }
    lora, losses = trained.arm.method.lora, [run.loss for run in runs]
    return {
        "name": trained.arm.name,
        "kind": trained.arm.method.kind,
        "rank": lora.rank if lora else None,
        "method": to_json(trained.arm.method),
        "trainable_parameters": runs[0].trainable_parameters,
        "optimizer_state_bytes": runs[0].optimizer_state_bytes,
        "learning_rate": trained.rate,
        "rate_at_edge": at_edge(trained.rate, [p.rate for p in trained.probe if p.round == 1]),
        "probe": to_json(trained.probe),
        "steps": trained.steps,
        "tokens": [run.tokens for run in runs],
        "losses": losses,
        "train_losses": [run.train_loss for run in runs],
        "loss": judging.figure(apart.losses(trained)),
        "kl": judging.figure(apart.moved(trained, "kl")),
        "general_loss": judging.figure(apart.moved(trained, "loss")),
        "scores": apart.scores(runs),
        "course": [_point(runs, i) for i in range(points(runs))],
        "measured": costs(trained, targets, base_bytes)
        | {
            "probe_seconds_per_step": [pace.seconds_per_step for pace in trained.paces],
            "forecast": to_json(trained.estimate),
            "adapters": [f"{TRIALS}/{run.trial}/adapter" for run in trained.runs] if lora else [],
        },
    }


def _point(runs: Sequence[RunResult], at: int) -> dict[str, Any]:
    """A point of the course: mean, lowest and highest over the seeds."""
    here = [run.course[at] for run in runs]
    point: dict[str, Any] = {"step": here[0].step, "tokens": fmean(p.tokens for p in here)}
    for name in ("loss", "kl", "general_loss"):
        values = [getattr(p, name) for p in here]
        point[name] = {"mean": fmean(values), "low": min(values), "high": max(values)}
    return point


def _headline(between: Sequence[Mapping[str, Any]]) -> str:
    """The sentence of the arm with the lowest loss among those that stand beside the reference."""
    best = min(between, key=lambda each: each["loss"]["mean"])
    return f"{best['measured']['sentence']} {best['verdict']['words']}"


def _notes(findings: CompareFindings, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [each.note for each in findings.profile.estimates if each.note]
    held = {arm.arm.method.base_dtype for arm in findings.arms} - {None}
    notes += [wording.packed_arms(str(each), findings.profile.profile.dtype) for each in held]
    base = findings.base.scores
    notes += [f"base: {base.cut}"] if base is not None and base.cut else []
    for trained, arm in zip(findings.arms, arms, strict=True):
        if arm["rate_at_edge"]:
            notes.append(wording.rate_at_edge(arm["name"], arm["learning_rate"]))
        notes += sorted({note for run in trained.runs for note in run.result.notes})
        scored = [run.result.scores for run in trained.runs]
        notes += [f"{arm['name']}: {cut}" for cut in {s.cut for s in scored if s} if cut]
    if len(findings.seeds) == 1:
        notes.append(wording.ONE_SEED)
    return notes
