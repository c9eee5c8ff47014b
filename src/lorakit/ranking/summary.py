"""Findings -> result.json: the answer first, then the evidence it rests on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.evaluation.crossed import crossed_mean
from lorakit.ranking.choose import Measured, generator
from lorakit.ranking.protocol import Findings
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.workers import spectra_of
from lorakit.report.numbers import number, percent


def summarise(findings: Findings, spec: RankSpec, command: str, root: Path) -> dict[str, Any]:
    """All figures of a search; docs/rank.md says what they mean.

    Args:
        findings: of the search.
        spec: its settings.
        command: how to repeat it.
        root: of the trials.
    """
    look, lab, made = findings.look, findings.lab, findings.found
    rank = findings.rank
    spent = sum(lab.ledger.values())
    search = sum(
        lab.ledger.get(name, 0.0) for name in ("look", "probe", "noise", "search", "metric")
    )
    source = _source(findings)
    return {
        "command": command,
        "model": look["identity"]["name"],
        "recommended_rank": rank,
        "adapter": "adapter",
        "kind": findings.choice.kind,
        "words": _words(findings),
        "confidence": findings.choice.confidence,
        "loss": findings.measured.loss,
        "base_loss": look["base_loss"],
        "base_rows": look["base_rows"],
        "learning_rate": findings.probed.rate,
        "trainable_parameters": lab.parameters(rank),
        "parameters_of_max_rank": lab.parameters(spec.ranks[-1]),
        "tolerance": {
            "share": findings.tolerance.share,
            "nats": findings.tolerance.nats(made.pair[1].loss),
            "noise": findings.tolerance.noise,
            "runs": findings.tolerance.runs,
            "words": findings.tolerance.words,
        },
        "method": spec.method,
        "level": spec.level,
        "ranks": list(spec.ranks),
        "steps": look["steps"],
        "reference": made.reference,
        "gaps": {
            str(r): d.to_dict() | {"state": findings.choice.states[r]}
            for r, d in sorted(made.gaps.items())
        },
        "evidence": [
            {
                "rank": e.rank,
                "how": e.how,
                "share": e.share,
                "parameters": lab.parameters(e.rank),
                "rows": len(e.measured.tokens_N),
                **_ends(e.measured, spec.level),
            }
            for e in made.evidence
        ],
        "decisions": list(made.steps_taken),
        "curves": [
            {
                "rank": run.rank,
                "rate": run.rate,
                "seed": run.seed,
                "by_layer": bool(run.pattern),
                "train": losses,
                "held_out": [
                    {"step": step, "loss": point.loss, "rows": len(point.tokens_N)}
                    for step, point in sorted(lab.points[run].items())
                ],
            }
            for run, losses in lab.curves.items()
        ],
        "spectra": {
            "rank": source[0],
            "values": spectra_of(root / source[1].trial / source[1].adapter),
        },
        "probe": [
            {"round": n, "steps": steps, "rate": rate, "loss": loss}
            for n, steps, rate, loss in findings.probed.tried
        ],
        "probe_rank": findings.probed.rank,
        "rate_at_edge": findings.probed.at_edge,
        "prior": dict(look["prior"]),
        "cost": {
            "runs": search / lab.whole,
            "with_checks": spent / lab.whole,
            "flops": dict(lab.ledger),
            "flops_of_one_run": lab.whole,
        },
        "metric": _metric(findings),
        "layers": _layers(findings),
        "verified": _verified(findings),
        "grid": _grid(findings),
        "rows": look["rows"],
        "eval_rows": look["eval_rows"],
        "template": look["template"],
        "data_sha256": look["data_sha256"],
        "base_sha256": look["base"],
        "versions": look["versions"],
        "data_notes": list(look["notes"]),
        "notes": _notes(findings),
        "measured": {"machine": look["measured"]["machine"]},
    }


def _words(findings: Findings) -> str:
    """The answer in a few sentences."""
    said = [findings.choice.words]
    if findings.rate_words:
        said.append(findings.rate_words)
    scored = findings.scored
    if scored is not None:
        by_loss = findings.found.rank
        values = ", ".join(f"{r}: {number(v, 3)}" for r, v in sorted(scored.scores.items()))
        if scored.rank != by_loss:
            said.append(
                f"{scored.metric} and the loss disagree: by the score it is rank {scored.rank}, by "
                f"the loss {by_loss} ({values}). The score decides, as asked."
            )
        else:
            said.append(f"{scored.metric} agrees ({values}).")
    if findings.layered is not None:
        d = findings.layered.difference
        won = "They win" if findings.layered.wins else "They do not win, and are left off"
        said.append(
            f"Ranks by layer with as many parameters: {number(d.mean, 2)} nats per token "
            f"({number(d.low, 2)} to {number(d.high, 2)}). {won}."
        )
    if findings.verified is not None:
        held = "held" if findings.verified.held else "did not hold"
        said.append(f"Trained anew with another seed beside its neighbours, the choice {held}.")
    if findings.grid is not None:
        said.append(
            f"Against the whole grid the regret is {number(findings.grid.regret, 2)} nats per token "
            f"(seed noise {number(findings.grid.noise, 2)})."
        )
    return " ".join(said)


def _ends(point: Measured, level: float) -> dict[str, float]:
    """Loss with its interval over rows; each end is a one-sided bound of the level."""
    values = (point.nats_N / point.tokens_N)[None]
    d = crossed_mean(
        values, point.tokens_N, generator=generator(), level=2 * level - 1, resamples=1000
    )
    return {"loss": point.loss, "low": d.low, "high": d.high}


def _source(findings: Findings) -> tuple[int, Any]:
    """The adapter whose singular values the page shows: of the highest rank that was trained."""
    runs = [run for run in findings.lab.points if not run.pattern]
    if not runs:
        return findings.rank, findings.place
    highest = max(runs, key=lambda run: (run.rank, max(findings.lab.points[run]), -run.seed))
    return highest.rank, findings.lab.place(highest)


def _metric(findings: Findings) -> dict[str, Any] | None:
    scored = findings.scored
    if scored is None:
        return None
    return {
        "name": scored.metric,
        "scores": {str(rank): value for rank, value in scored.scores.items()},
        "gaps": {str(rank): d.to_dict() for rank, d in scored.gaps.items()},
        "rank": scored.rank,
        "rank_by_loss": findings.found.rank,
    }


def _layers(findings: Findings) -> dict[str, Any] | None:
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


def _verified(findings: Findings) -> dict[str, Any] | None:
    made = findings.verified
    if made is None:
        return None
    return {
        "seed": made.seed,
        "losses": {str(rank): loss for rank, loss in made.losses.items()},
        "gaps": {str(rank): d.to_dict() for rank, d in made.gaps.items()},
        "best": made.best,
        "held": made.held,
    }


def _grid(findings: Findings) -> dict[str, Any] | None:
    made = findings.grid
    if made is None:
        return None
    return {
        "losses": [
            {"rank": rank, "rate": rate, "losses": list(losses)}
            for (rank, rate), losses in made.losses.items()
        ],
        "best": {"rank": made.best_rank, "rate": made.best_rate},
        "seed_noise": made.noise,
        "regret": made.regret,
        "regret_share": made.regret / _mean_best(made.losses),
    }


def _mean_best(losses: Mapping[tuple[int, float], tuple[float, ...]]) -> float:
    return min(math.fsum(each) / len(each) for each in losses.values())


def _notes(findings: Findings) -> list[str]:
    notes = [findings.look["note"]] if findings.look["note"] else []
    if findings.probed.at_edge:
        notes.append(
            f"the chosen rate {findings.probed.rate:g} is the end of the grid; more --rates might "
            "find a better one"
        )
    if findings.look["eval_rows"] < 100:
        notes.append(
            f"{findings.look['eval_rows']} held-out rows: small differences cannot be told; give "
            "more for a surer answer"
        )
    prior = findings.look["prior"]
    notes.append(
        f"prior: the completions hold {number(prior['bits'] / 1000, 3)} kbit under the base, at "
        f"{prior['bits_a_parameter']:g} bits a parameter those of rank {number(prior['rank'], 2)}; "
        "most of it is noise that nothing learns, so this decides nothing"
    )
    share = findings.lab.parameters(findings.rank) / max(findings.look["trainable"].values())
    notes.append(f"the adapter has {percent(share)} of the highest rank's parameters")
    return notes
