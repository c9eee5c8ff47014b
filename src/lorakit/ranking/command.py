"""`lorakit rank`: rows -> a folder with the recommended rank, its trained adapter, and the evidence.

RUN/
  config.yaml      every option; with --resume the search goes on from here
  trials/          one folder a trial, see lorakit.experiments
  adapter/         trained, at the recommended rank
  result.json      the figures
  report.html      the page made of them, and plots/*.png

A search, from top to bottom:

    profile   rows, base, steps, FLOPs, the prior                       one trial
    probe     learning rates in short runs, at a middle rank            one or two trials
    noise     short runs that differ in their seed alone                one trial
    search    the bracket, or what --method names                       see bracket.py
    metric    answers of the ranks around the choice, where asked for   see checks.py
    layers    ranks by layer at the same parameter count, where asked for
    verify    the choice and its neighbours anew, with another seed, where asked for
    grid      every rank, rates and seeds, and the regret, where asked for

The held-out rows choose the rate and the rank, and all training rows are trained on. Whoever wants
the loss of the choice on rows that chose nothing keeps some back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.asking import asking_of
from lorakit.adapters.pairs import read_stored, write_stored
from lorakit.adapters.trained_rows import read_trained_rows
from lorakit.config import RunConfig
from lorakit.errors import ConfigError
from lorakit.experiments import Report, Runner
from lorakit.experiments.experiment import MakeRunner, begin_experiment
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.stamps import Sources, Stamp, stamp_of
from lorakit.files.whole import write_json
from lorakit.ranking import probing, wording
from lorakit.ranking.bracket import SearchResult, bracket
from lorakit.ranking.choose import Judge, LossTolerance
from lorakit.ranking.expenses import Expenses, expenses_of
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.spec import RankSettings, RankSpec, check_start, check_variant
from lorakit.ranking.summary import summarise
from lorakit.ranking.trials import (
    PROFILE,
    AdapterRef,
    Candidate,
    RankProfile,
    RankProfileRequest,
)
from lorakit.report import write_rank_report
from lorakit.run.folder import RESULT
from lorakit.training import learning_rate_at

# Options of a run that a search decides, trial by trial.
_DECIDED = ("rank", "rank_pattern", "alpha_pattern", "learning_rate")
# What may be asked for later of a search that is there: its trials stay what they are.
_LATER = ("verify", "exhaustive", "per_layer", "metric", "grid_rates", "grid_seeds")


@dataclass(frozen=True, eq=False)
class RankFindings:
    """All that a search came to.

    Attributes:
        lab: all that was trained, and what it cost; rows and base in its profile.
        probed, tolerance: of the short runs.
        search: by losses, with the answer that they give.
        rank: recommended: that of the search, or of the metric where one decides.
        adapter: trained at it, by layer where that won.
        losses: of the held-out rows at the recommended rank.
        expenses: what it was expected to cost, and whether it was too short.
        checks: those of `checks.py` that were asked for, by their names in result.json.
    """

    lab: TrialLab
    probed: probing.RateChoice
    tolerance: LossTolerance
    search: SearchResult
    rank: int
    adapter: AdapterRef
    losses: RowLosses
    expenses: Expenses
    checks: Mapping[str, Any] = field(default_factory=dict)


def run_rank(
    settings: RankSettings,
    *,
    command: str = "",
    report: Report = lambda event: None,
    runner: MakeRunner | None = None,
) -> dict[str, Any]:
    """Run what is missing of a search, and write its adapter, result and page.

    Args:
        settings: the settings.
        command: how to repeat it, for the page.
        report: told of phases, trials and decisions, as flat mappings with a "kind".
        runner: makes what does the trials, given their folder; a process each by default.

    Returns:
        What result.json holds.

    Raises:
        InputError: something given cannot be used.
        DivergedError, TrialError: see `search_rank`; finished trials are kept.
    """
    spec, config = settings.spec, settings.config
    check_start(config)
    experiment = begin_experiment(settings, command, report, runner, what="a search", later=_LATER)
    root, run = experiment.trials, experiment.runner
    with experiment.profiling():
        profile = profile_rank(spec, config, run)
        expenses = expenses_of(spec, config, profile)
    report({"kind": "profile", "profile": profile, "expenses": expenses, "margin": spec.share()})
    findings = search_rank(spec, config, run, root, profile, report=report)
    result = summarise(findings, spec, experiment.command, root)
    _keep_adapter(findings, settings, result, root, experiment.folder / "adapter")
    write_json(experiment.folder / RESULT, result)
    write_rank_report(experiment.folder)
    return result


_TRUNCATING = ("heal", "nested")
"""Methods that take a lower rank out of a higher one."""


def first_stamp(config: RunConfig) -> Stamp:
    """What all trials of a search depend on, without the options that it decides."""
    return stamp_of(config, Sources.of(config), without=_DECIDED)


def profile_rank(spec: RankSpec, config: RunConfig, runner: Runner) -> RankProfile:
    """The first trial: what is there and what the ranks cost.

    Raises:
        InputError: something given cannot be used.
    """
    check_variant(config.lora.variant)
    if config.lora.target_parameters and spec.method in _TRUNCATING:
        raise ConfigError(
            f"method {spec.method} truncates pairs, and those on experts (target_parameters) cannot be "
            "truncated: take --method bracket or halving"
        )
    concurrent = max(2, spec.rates if config.train.learning_rate == "auto" else 2)
    request = RankProfileRequest(first_stamp(config), spec.ranks, concurrent)
    return PROFILE.run(runner, request, Sources.of(config), "profile")


def search_rank(
    spec: RankSpec,
    config: RunConfig,
    runner: Runner,
    root: Path,
    profile: RankProfile,
    *,
    report: Report = lambda event: None,
) -> RankFindings:
    """Run what is missing of a search.

    Args:
        spec, config: the settings.
        runner: does the trials; what was kept is not done again.
        root: where the trials' folders lie.
        profile: of `profile_rank`.
        report: told of the phases and decisions.

    Raises:
        DataError, ConfigError: see `expenses_of`.
        DivergedError: every rate of the probe diverged, or a run at the chosen one.
    """
    base, seed = profile.profile, config.train.seed
    expenses = expenses_of(spec, config, profile)
    stamp = first_stamp(config).of_contents(base.data_sha256, base.base_sha256)
    lab = TrialLab(profile, stamp, Sources.of(config), runner, report, spec.average_share)
    lab.phase = "probe"
    probed = probing.probe(lab, spec, config, base.rate_rule)
    lab.phase = "noise"
    tolerance = probing.seed_noise(lab, spec, probed, seed)
    report({"kind": "decided", "text": wording.decided(probed.rate, tolerance)})

    # Once the rate has decayed, runs have settled: how much of it is left says how much they have not.
    judge = Judge(
        tolerance,
        spec.level,
        spec.undecided,
        lambda step: learning_rate_at(min(step, lab.steps), lab.steps, 1.0, config.train),
        looks=_looks(spec),
        refused=expenses.short,
    )
    lab.phase = "search"
    search, adapter = _search(lab, spec, judge, probed.rate, seed, expenses.most)
    for decision in search.decisions:
        report({"kind": "decided", "text": wording.sentence(decision)})
    rank = search.choice.rank
    findings = RankFindings(lab, probed, tolerance, search, rank, adapter, search.losses, expenses)
    if any((spec.metric, spec.per_layer, spec.verify, spec.exhaustive)):
        return _checked(findings, spec, config, judge, root)
    return findings


def _looks(spec: RankSpec) -> int:
    """How often two runs may be held against each other: on each rung, and at their end."""
    return len({*spec.rungs, 1.0}) if spec.method == "bracket" else 1


def _search(
    lab: TrialLab, spec: RankSpec, judge: Judge, rate: float, seed: int, budget: float
) -> tuple[SearchResult, AdapterRef]:
    """The answer by losses, and its adapter."""
    if spec.method != "bracket":
        from lorakit.ranking.alternatives.lab import search

        return search(lab, spec, judge, rate, seed)
    result = bracket(
        lab, spec.ranks, rate, seed, judge,
        rungs=spec.rungs, decide_at=spec.decide_at, budget=budget,
    )  # fmt: skip
    return result, lab.adapter(Candidate(result.choice.rank, rate, seed))


def _checked(
    findings: RankFindings, spec: RankSpec, config: RunConfig, judge: Judge, root: Path
) -> RankFindings:
    """The findings with the checks that are asked for."""
    from lorakit.ranking import checks

    lab, records = findings.lab, dict[str, Any]()
    recommended = Candidate(findings.rank, findings.probed.rate, config.train.seed)
    if spec.metric is not None:
        lab.phase = "metric"
        records["metric"] = scored = checks.by_metric(lab, spec, config, recommended)
        if scored.rank != recommended.rank:
            recommended = replace(recommended, rank=scored.rank)
            losses = lab.points[recommended][lab.steps]
            findings = replace(
                findings, rank=recommended.rank, adapter=lab.adapter(recommended), losses=losses
            )
    if spec.per_layer:
        lab.phase = "layers"
        records["layers"], by_module = checks.by_layer(lab, spec, judge, recommended, root)
        if records["layers"].wins:
            findings = replace(findings, adapter=lab.adapter(by_module))
    if spec.verify:
        lab.phase = "verify"
        records["verified"] = checks.verify(lab, spec, judge, recommended)
    if spec.exhaustive:
        lab.phase = "grid"
        records["grid"] = checks.grid(lab, spec, judge, findings.probed, recommended)
    return replace(findings, checks=records)


def _keep_adapter(
    findings: RankFindings,
    settings: RankSettings,
    result: Mapping[str, Any],
    root: Path,
    folder: Path,
) -> None:
    """The adapter of the answer, with the search in its record."""
    place = findings.adapter.folder(root)
    stored = read_stored(place)
    profile = findings.lab.profile.profile
    provenance = {
        "template": dict(profile.template),
        "data_sha256": profile.data_sha256,
        "config": {n: v for n, v in settings.to_flat().items() if n not in ("out", "resume")},
        "asking": asking_of(settings.config.model, vars(settings.config.data)),
        "versions": dict(profile.versions),
        "metrics": {"eval_loss": result["loss"], "eval_loss_before": result["base_loss"]},
        "rank_search": {
            "rank": findings.rank,
            "kind": findings.search.choice.kind,
            "method": settings.spec.method,
            "confidence": findings.search.choice.confidence,
            "tolerance": findings.tolerance.share,
            "margin": findings.tolerance.margin,
        },
    }
    digest = stored.record.tensors_sha256 if stored.record else None
    rows, _ = read_trained_rows(place, digest)
    write_stored(folder, replace(stored, rows=rows), provenance=provenance, overwrite=True)
