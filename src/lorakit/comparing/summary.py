"""Findings -> result.json: what is the same however often the comparison is repeated, and what not.

Whatever lies under a key "measured", at any depth, is seconds or bytes that a process took, or is
made from such; everything else follows from rows, base, settings and software alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lorakit.comparing import differences as apart
from lorakit.comparing import verdict as words
from lorakit.comparing.costs import costs, points
from lorakit.comparing.methods import Arm
from lorakit.comparing.protocol import ArmFindings, Findings
from lorakit.comparing.spec import CompareSpec
from lorakit.config import RunConfig
from lorakit.experiments.rates import at_edge, rounds

# The best learning rate of LoRA over that of full fine-tuning, as published ("LoRA Without
# Regret", Thinking Machines 2025).
PUBLISHED_RATIO = 10.0


def summarise(
    findings: Findings, spec: CompareSpec, config: RunConfig, command: str
) -> dict[str, Any]:
    """All figures of a comparison; docs/compare.md has a line for each."""
    look, base = findings.look, findings.base
    reference = reference_arm([each.arm for each in findings.arms])
    arms = [_arm(each, findings) for each in findings.arms]
    at = [each.arm for each in findings.arms].index(reference)
    between = [
        _difference(each, arms[i], findings.arms[at], arms[at], findings, spec)
        for i, each in enumerate(findings.arms)
        if i != at
    ]
    return {
        "command": command,
        "model": look["identity"]["name"],
        "dtype": look["dtype"],
        "total_parameters": look["total_parameters"],
        "rows": look["rows"],
        "tuning_rows": look["tuning_rows"],
        "eval_rows": look["eval_rows"],
        "tokens_per_step": look["tokens_per_step"],
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
            "level": apart.LEVEL,
            "workers": spec.workers,
        },
        "base": {
            "loss": base["loss"],
            "scores": {
                m["name"]: m["value"] for m in (base["scores"] or {"metrics": []})["metrics"]
            },
            "why_scores": (base["scores"] or {"why": "nothing can be asked"})["why"],
            "general": {k: v for k, v in base["general"].items() if k != "texts"},
        },
        "reference": reference.name,
        "arms": arms,
        "differences": between,
        "published_rate_ratio": PUBLISHED_RATIO,
        "template": look["template"],
        "data_sha256": look["data_sha256"],
        "base_sha256": look["base"],
        "versions": look["versions"],
        "data_notes": list(look["notes"]),
        "notes": _notes(findings, arms),
        "measured": {
            "headline": _headline(between),
            "machine": look["machine"],
        },
    }


def reference_arm(arms: Sequence[Arm]) -> Arm:
    """What the others are held against: full fine-tuning, or the first where none is."""
    return next((arm for arm in arms if arm.method.kind == "full"), arms[0])


def _arm(found: ArmFindings, findings: Findings) -> dict[str, Any]:
    runs = [run.result for run in found.runs]
    full = next((a for a in findings.arms if a.arm.method.kind == "full"), None)
    base_bytes = (
        None if full is None else round(fmean(r.result["bytes_on_disk"] for r in full.runs))
    )
    targets = {
        other.arm.name: fmean(run.result["loss"] for run in other.runs)
        for other in findings.arms
        if other.arm != found.arm
    }
    lora = found.arm.method.lora
    return {
        "name": found.arm.name,
        "kind": found.arm.method.kind,
        "rank": lora.rank if lora else None,
        "method": found.arm.method.to_dict(),
        "trainable_parameters": runs[0]["trainable_parameters"],
        "optimizer_state_bytes": runs[0]["optimizer_state_bytes"],
        "learning_rate": found.rate,
        "rate_at_edge": at_edge(found.rate, [p.rate for p in found.probe if p.round == 1]),
        "probe": [
            {"round": p.round, "steps": p.steps, "rate": p.rate, "loss": p.loss}
            for p in found.probe
        ],
        "steps": found.steps,
        "tokens": [run["tokens"] for run in runs],
        "losses": [run["loss"] for run in runs],
        "train_losses": [run["train_loss"] for run in runs],
        "loss": _interval(apart.interval(apart.losses(found)), [run["loss"] for run in runs]),
        "kl": _interval(apart.interval(apart.moved(found, "kl")), []),
        "general_loss": _interval(apart.interval(apart.moved(found, "loss")), []),
        "scores": apart.scores(runs),
        "course": [_point(runs, i) for i in range(points(runs))],
        "measured": costs(found, targets, base_bytes)
        | {
            "probe_seconds_per_step": [p.measured["seconds_per_step"] for p in found.probe],
            "forecast": dict(found.forecast),
            "adapters": [
                f"{run.folder.parent.name}/{run.folder.name}/adapter" for run in found.runs
            ]
            if lora
            else [],
        },
    }


def _interval(found: Any, values: Sequence[float]) -> dict[str, Any]:
    if found is None:
        mean = fmean(values) if values else 0.0
        return {
            "mean": mean,
            "low": mean,
            "high": mean,
            "level": 0.0,
            "seeds": len(values),
            "rows": 1,
        }
    return dict(found.to_dict())


def _point(runs: Sequence[Mapping[str, Any]], at: int) -> dict[str, Any]:
    """A point of the course: mean, lowest and highest over the seeds."""
    here = [run["course"][at] for run in runs]
    point: dict[str, Any] = {"step": here[0]["step"], "tokens": fmean(p["tokens"] for p in here)}
    for name in ("loss", "kl", "general_loss"):
        values = [p[name] for p in here]
        point[name] = {"mean": fmean(values), "low": min(values), "high": max(values)}
    return point


def _difference(
    found: ArmFindings,
    arm: Mapping[str, Any],
    against: ArmFindings,
    reference: Mapping[str, Any],
    findings: Findings,
    spec: CompareSpec,
) -> dict[str, Any]:
    loss = apart.difference(apart.losses(found), apart.losses(against))
    kl = apart.difference(apart.moved(found, "kl"), apart.moved(against, "kl"))
    general = apart.difference(apart.moved(found, "loss"), apart.moved(against, "loss"))
    runs, others = ([run.result for run in each.runs] for each in (found, against))
    between: dict[str, Any] = {
        "arm": found.arm.name,
        "against": against.arm.name,
        "loss": _interval(loss, []),
        "kl": _interval(kl, []),
        "general_loss": _interval(general, []),
        "scores": {
            name: one.to_dict()
            for name, one in apart.score_differences(
                runs, others, findings.base["references"]
            ).items()
        },
        "rate_ratio": found.rate / against.rate,
        "fewer_parameters": 1 - arm["trainable_parameters"] / reference["trainable_parameters"],
    }
    shares = {
        f"{name}_share": arm["measured"][name] / reference["measured"][name]
        for name in ("peak_memory_bytes", "seconds_per_step", "train_seconds")
    }
    between["measured"] = shares
    if loss is not None:
        gain = findings.base["loss"] - reference["loss"]["mean"]
        judged = words.judge(loss, gain, spec.margin, against.arm.name)
        between["verdict"] = {"kind": judged.kind, "gain": gain, "gain_kept": judged.kept}
        between["verdict"]["words"] = judged.words
        between["measured"]["sentence"] = (
            f"{found.arm.name} {words.memory(arm, reference)}; {words.quality(loss, judged)}; "
            f"{words.forgetting(arm, reference, kl)}."
        )
    return between


def _headline(between: Sequence[Mapping[str, Any]]) -> str:
    """The sentence of the arm with the lowest loss among those that stand beside the reference."""
    judged = [each for each in between if "verdict" in each]
    if not judged:
        return "Nothing was compared: give two held-out rows at least."
    best = min(judged, key=lambda each: each["loss"]["mean"])
    return f"{best['measured']['sentence']} {best['verdict']['words']}"


def _notes(findings: Findings, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [each["note"] for each in findings.look["forecasts"] if each["note"]]
    for arm in arms:
        if arm["rate_at_edge"]:
            notes.append(
                f"{arm['name']}: the chosen rate {arm['learning_rate']:g} is the end of the grid; "
                "more --rates might find a better one"
            )
        notes += sorted(
            {note for run in findings.arms[arms.index(arm)].runs for note in run.result["notes"]}
        )
    if len(findings.seeds) == 1:
        notes.append("one seed: the intervals say how other rows would differ, not other seeds")
    return notes
