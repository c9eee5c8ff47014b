"""A search for a rank, from top to bottom.

    look      rows, base, steps, FLOPs, the prior                       one trial
    probe     learning rates in short runs, at a middle rank            one or two trials
    noise     short runs that differ in their seed alone                one trial
    search    bracket, heal, nested or halving                          see search.py
    metric    answers of the ranks around the choice, where asked for
    layers    ranks by layer at the same parameter count, where asked for
    verify    the choice and its neighbours anew, with another seed, where asked for
    grid      every rank, rates and seeds, and the regret, where asked for

The held-out rows choose the rate and the rank, and all training rows are trained on. Whoever wants
the loss of the choice on rows that chose nothing keeps some back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lorakit.config import OutputSpec, RunConfig
from lorakit.experiments import Report, Runner, Trial, one
from lorakit.ranking import checks, probing, search
from lorakit.ranking.bracket import bracket
from lorakit.ranking.choose import (
    Choice,
    Measured,
    Tolerance,
    choose,
    gap,
    generator,
    rate_matters,
)
from lorakit.ranking.lab import Place, TrialLab
from lorakit.ranking.search import Found, Judge, Run
from lorakit.ranking.spec import RankSpec
from lorakit.run.machine import versions
from lorakit.training import learning_rate_at

_LOOK = "lorakit.ranking.look:look"


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a search came to."""

    look: Mapping[str, Any]
    lab: TrialLab
    probed: probing.Probed
    tolerance: Tolerance
    found: Found
    choice: Choice
    rank: int
    place: Place
    measured: Measured
    rate_words: str
    scored: checks.Scored | None
    layered: checks.Layered | None
    verified: checks.Verified | None
    grid: checks.Grid | None


def look_at(spec: RankSpec, config: RunConfig, runner: Runner) -> dict[str, Any]:
    """The first trial: what is there and what the ranks cost.

    Raises:
        InputError: something given cannot be used.
    """
    stamps = [
        _stamp(name) for name in (config.model.model, *config.data.data, *config.data.eval_data)
    ]
    together = max(2, spec.rates if config.train.learning_rate == "auto" else 2)
    asked = {
        "config": _options(config),
        "ranks": list(spec.ranks),
        "together": together,
        "files": stamps,
        "software": _software(versions()),
    }
    return one(runner, Trial(_LOOK, asked, _where(config), "look")).result


def search_rank(
    spec: RankSpec,
    config: RunConfig,
    runner: Runner,
    root: Path,
    found: Mapping[str, Any],
    *,
    report: Report = lambda event: None,
) -> Findings:
    """Run what is missing of a search.

    Args:
        spec, config: the settings.
        runner: does the trials; what was kept is not done again.
        root: where the trials' folders lie.
        found: of `look_at`.
        report: told of the phases and decisions.

    Raises:
        DivergedError: every rate of the probe diverged, or a run at the chosen one.
    """
    common = {
        "config": _options(config),
        "data_sha256": found["data_sha256"],
        "base": found["base"],
        "software": _software(found["versions"]),
    }
    lab = TrialLab(found, common, _where(config), runner, report, spec.average_share)
    ranks, seed = spec.ranks, config.train.seed
    lab.phase = "look"
    lab.count_look()
    lab.phase = "probe"
    probed = probing.probe(lab, spec, config, found)
    lab.phase = "noise"
    tolerance = probing.tolerance(lab, spec, probed, seed)
    report({"kind": "decided", "text": f"rate {probed.rate:g}; tolerance {tolerance.words}"})

    judge = Judge(
        lambda rank, reference: gap(rank, reference, generator=generator(), level=spec.level),
        tolerance.nats,
        spec.undecided,
        # Where a run happens to be depends on its seed the more the higher the rate is; once that
        # has decayed, runs have settled.
        lambda step: (
            tolerance.noise * learning_rate_at(min(step, lab.steps), lab.steps, 1.0, config.train)
        ),
    )
    lab.phase = "search"
    made = _search(lab, spec, judge, probed.rate, seed)
    for text in made.steps_taken:
        report({"kind": "decided", "text": text})
    little = tolerance.nats(made.pair[1].loss)
    choice = choose(
        made.gaps,
        made.reference,
        little,
        ranks,
        undecided=spec.undecided,
        tolerances=made.tolerances,
    )
    rank, run = made.rank, Run(made.rank, probed.rate, seed)

    scored = None
    if spec.metric is not None:
        lab.phase = "metric"
        scored = checks.by_metric(lab, spec, config, run)
        rank = scored.rank
        run = Run(rank, probed.rate, seed)
    if rank == made.rank:
        place = lab.made(made.how, run)
        measured = [e.measured for e in made.evidence if e.rank == rank and e.how == made.how][-1]
    else:
        place, measured = lab.place(run), lab.points[run][lab.steps]

    layered = None
    if spec.per_layer:
        lab.phase = "layers"
        layered = checks.by_layer(lab, spec, judge, run, root)
    verified = None
    if spec.verify:
        lab.phase = "verify"
        verified = checks.verify(lab, spec, judge, run)
    whole = None
    if spec.exhaustive:
        lab.phase = "grid"
        whole = checks.grid(lab, spec, probed, seed, rank)
    return Findings(
        look=found,
        lab=lab,
        probed=probed,
        tolerance=tolerance,
        found=made,
        choice=choice,
        rank=rank,
        place=layered.place if layered and layered.wins else place,
        measured=measured,
        rate_words=rate_matters(probed.first, probed.rate, made.gaps),
        scored=scored,
        layered=layered,
        verified=verified,
        grid=whole,
    )


def _search(lab: TrialLab, spec: RankSpec, judge: Judge, rate: float, seed: int) -> Found:
    ranks = spec.ranks
    match spec.method:
        case "bracket":
            return bracket(
                lab,
                ranks,
                rate,
                seed,
                judge,
                rungs=spec.rungs,
                decide_at=spec.decide_at,
                budget=spec.budget,
            )
        case "heal":
            return search.heal(lab, ranks, rate, seed, judge, heal_share=spec.heal_share)
        case "nested":
            return search.nested(lab, ranks, rate, seed, judge, heal_share=spec.heal_share)
        case "halving":
            return search.halving(lab, ranks, rate, seed, judge)


def _where(config: RunConfig) -> dict[str, Any]:
    data = config.data
    return {
        "model": config.model.model,
        "data": list(data.data),
        "eval_data": list(data.eval_data),
    }


def _options(config: RunConfig) -> dict[str, Any]:
    """Options that every trial shares: not the places, nor what the search or its output decides."""
    flat = config.to_flat()
    for name in (*_where(config), "from", "keep", "eval_every", "patience", "checkpoint_every"):
        flat.pop(name, None)
    for name in ("rank", "rank_pattern", "alpha_pattern", "learning_rate", "ranks", "tasks"):
        flat.pop(name)
    for each in fields(OutputSpec):
        flat.pop(each.name)
    return flat


def _software(found: Mapping[str, str]) -> dict[str, str]:
    """What a trial of another version is not the same as."""
    return {name: found[name] for name in ("lorakit", "torch", "transformers")}


def _stamp(name: str) -> list[Any]:
    """Name, sizes and times of the files that a source names; the name alone where it is no path."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    held = [(str(f), f.stat()) for f in files if f.is_file()]
    return [name, *([file, stat.st_size, stat.st_mtime_ns] for file, stat in held)]
