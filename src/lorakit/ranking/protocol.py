"""A search for a rank, from top to bottom.

    profile   rows, base, steps, FLOPs, the prior                       one trial
    probe     learning rates in short runs, at a middle rank            one or two trials
    noise     short runs that differ in their seed alone                one trial
    search    the bracket, or what --method names                       see bracket.py
    metric    answers of the ranks around the choice, where asked for
    layers    ranks by layer at the same parameter count, where asked for
    verify    the choice and its neighbours anew, with another seed, where asked for
    grid      every rank, rates and seeds, and the regret, where asked for

The held-out rows choose the rate and the rank, and all training rows are trained on. Whoever wants
the loss of the choice on rows that chose nothing keeps some back.
"""

from dataclasses import dataclass
from pathlib import Path

from lorakit.config import RunConfig
from lorakit.experiments import Report, Runner
from lorakit.experiments.stamps import Sources, Stamp, stamp_of
from lorakit.ranking import checks, probing, wording
from lorakit.ranking.bracket import bracket
from lorakit.ranking.choose import (
    Choice,
    LossTolerance,
    Measured,
    RateEffect,
    choose,
    gap,
    generator,
    rate_effect,
)
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.search import Candidate, Judge, SearchResult
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import PROFILE, AdapterRef, RankProfile, RankProfileRequest
from lorakit.training import learning_rate_at

# Options of a run that a search decides, trial by trial.
_DECIDED = ("rank", "rank_pattern", "alpha_pattern", "learning_rate")


@dataclass(frozen=True, eq=False)
class RankFindings:
    """All that a search came to.

    Attributes:
        profile: rows and base.
        lab: all that was trained, and what it cost.
        probed, tolerance: of the short runs.
        search: by losses; `choice` is the answer that its losses give.
        rank: recommended: that of `choice`, or of the metric where one decides.
        adapter: trained at it, by layer where that won.
        measured: held-out losses at the recommended rank.
        rate_effect: whether the learning rate matters more than the rank.
        scored, layered, verified, grid: checks, where asked for.
    """

    profile: RankProfile
    lab: TrialLab
    probed: probing.RateChoice
    tolerance: LossTolerance
    search: SearchResult
    choice: Choice
    rank: int
    adapter: AdapterRef
    measured: Measured
    rate_effect: RateEffect | None
    scored: checks.Scored | None
    layered: checks.Layered | None
    verified: checks.Verified | None
    grid: checks.Grid | None


def first_stamp(config: RunConfig) -> Stamp:
    """What all trials of a search depend on, without the options that it decides."""
    return stamp_of(config, Sources.of(config), without=_DECIDED)


def profile_rank(spec: RankSpec, config: RunConfig, runner: Runner) -> RankProfile:
    """The first trial: what is there and what the ranks cost.

    Raises:
        InputError: something given cannot be used.
    """
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
        DivergedError: every rate of the probe diverged, or a run at the chosen one.
    """
    base = profile.profile
    stamp = first_stamp(config).of_contents(base.data_sha256, base.base_sha256)
    lab = TrialLab(profile, stamp, Sources.of(config), runner, report, spec.average_share)
    seed, ledger = config.train.seed, lab.ledger
    ledger.phase = "profile"
    lab.count_profile()
    ledger.phase = "probe"
    probed = probing.probe(lab, spec, config, base.rate_rule)
    ledger.phase = "noise"
    tolerance = probing.tolerance(lab, spec, probed, seed)
    report({"kind": "decided", "text": wording.decided(probed.rate, tolerance)})

    judge = _judge(spec, config, tolerance, lab.steps)
    ledger.phase = "search"
    search, adapter = _search(lab, spec, judge, probed.rate, seed)
    for decision in search.decisions:
        report({"kind": "decided", "text": wording.sentence(decision)})
    choice = choose(
        search.gaps,
        search.reference,
        tolerance.nats(search.pair[1].loss),
        spec.ranks,
        undecided=spec.undecided,
        tolerances=search.tolerances,
    )
    chosen, measured, scored = Candidate(search.rank, probed.rate, seed), search.measured, None
    if spec.metric is not None:
        ledger.phase = "metric"
        scored = checks.by_metric(lab, spec, config, chosen)
        if scored.rank != search.rank:
            chosen = Candidate(scored.rank, probed.rate, seed)
            adapter, measured = lab.adapter(chosen), lab.points[chosen][lab.steps]
    layered, verified, grid = _checks(lab, spec, judge, chosen, probed, root)
    return RankFindings(
        profile=profile,
        lab=lab,
        probed=probed,
        tolerance=tolerance,
        search=search,
        choice=choice,
        rank=chosen.rank,
        adapter=layered.adapter if layered and layered.wins else adapter,
        measured=measured,
        rate_effect=rate_effect(probed.first, probed.rate, search.gaps),
        scored=scored,
        layered=layered,
        verified=verified,
        grid=grid,
    )


def _judge(spec: RankSpec, config: RunConfig, tolerance: LossTolerance, steps: int) -> Judge:
    return Judge(
        lambda rank, reference: gap(rank, reference, generator=generator(), level=spec.level),
        tolerance.nats,
        spec.undecided,
        # Where a run happens to be depends on its seed the more the higher the rate is; once that
        # has decayed, runs have settled.
        lambda step: tolerance.noise * learning_rate_at(min(step, steps), steps, 1.0, config.train),
    )


def _search(
    lab: TrialLab, spec: RankSpec, judge: Judge, rate: float, seed: int
) -> tuple[SearchResult, AdapterRef]:
    """The answer by losses, and its adapter."""
    if spec.method != "bracket":
        from lorakit.ranking.alternatives.lab import search

        return search(lab, spec, judge, rate, seed)
    result = bracket(
        lab,
        spec.ranks,
        rate,
        seed,
        judge,
        rungs=spec.rungs,
        decide_at=spec.decide_at,
        budget=spec.budget,
    )
    return result, lab.adapter(Candidate(result.rank, rate, seed))


def _checks(
    lab: TrialLab,
    spec: RankSpec,
    judge: Judge,
    chosen: Candidate,
    probed: probing.RateChoice,
    root: Path,
) -> tuple[checks.Layered | None, checks.Verified | None, checks.Grid | None]:
    """The checks that are asked for."""
    layered, verified, grid = None, None, None
    if spec.per_layer:
        lab.ledger.phase = "layers"
        layered = checks.by_layer(lab, spec, judge, chosen, root)
    if spec.verify:
        lab.ledger.phase = "verify"
        verified = checks.verify(lab, spec, judge, chosen)
    if spec.exhaustive:
        lab.ledger.phase = "grid"
        grid = checks.grid(lab, spec, probed, chosen.seed, chosen.rank)
    return layered, verified, grid
