"""A search for a rank, from top to bottom.

    look      rows, base, steps, FLOPs, the prior                       one trial
    probe     learning rates by successive halving, at a middle rank    rounds
    noise     short runs that differ in their seed alone                one trial
    search    bracket, heal, nested or halving                          see search.py
    metric    answers of the ranks around the choice, where asked for
    layers    ranks by layer at the same parameter count, where asked for
    verify    the choice and its neighbours anew, with another seed, where asked for
    grid      every rank, rates and seeds, and the regret, where asked for

The held-out rows choose the rate and the rank, and all training rows are trained on. Whoever wants
the loss of the choice on rows that chose nothing keeps some back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.config import OutputSpec, RunConfig
from lorakit.errors import DivergedError
from lorakit.evaluate.crossed import CrossedInterval, crossed_mean
from lorakit.ranking import search
from lorakit.ranking.choose import (
    Choice,
    Measured,
    Tolerance,
    choose,
    gap,
    rate_matters,
    surely,
    tolerance_of,
)
from lorakit.ranking.lab import Place, TrialLab
from lorakit.ranking.layers import allot
from lorakit.ranking.search import Found, Judge, Run
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.workers import spectra_of
from lorakit.trials import Report, Runner, Trial, one
from lorakit.trials.rates import at_edge, grid, rounds, survivors

_LOOK = "lorakit.ranking.look:look"


@dataclass(frozen=True)
class Probed:
    """The rates that were tried, by round: steps, rate, loss; and the one chosen."""

    rate: float
    rank: int
    tried: tuple[tuple[int, int, float, float | None], ...]
    at_edge: bool

    @property
    def first(self) -> dict[float, float | None]:
        """Losses of the first round, in which all rates were tried."""
        return {rate: loss for number, _, rate, loss in self.tried if number == 1}


@dataclass(frozen=True, eq=False)
class Scored:
    """What `--metric` says: scores of the ranks that were asked, and its choice."""

    metric: str
    scores: Mapping[int, float]
    gaps: Mapping[int, CrossedInterval]
    rank: int


@dataclass(frozen=True, eq=False)
class Layered:
    """Ranks by layer beside the same number of parameters in one rank."""

    ranks: Mapping[str, int]
    evidence: int
    difference: CrossedInterval
    loss: float
    wins: bool
    place: Place


@dataclass(frozen=True, eq=False)
class Verified:
    """Whether the choice held with another seed."""

    seed: int
    losses: Mapping[int, float]
    gaps: Mapping[int, CrossedInterval]
    best: int
    held: bool


@dataclass(frozen=True, eq=False)
class Grid:
    """The whole grid: mean losses by rank and rate, and the regret of the choice."""

    losses: Mapping[tuple[int, float], tuple[float, ...]]
    best_rank: int
    best_rate: float
    noise: float
    regret: float


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a search came to."""

    look: Mapping[str, Any]
    lab: TrialLab
    probed: Probed
    tolerance: Tolerance
    found: Found
    choice: Choice
    rank: int
    place: Place
    measured: Measured
    rate_words: str
    scored: Scored | None
    layered: Layered | None
    verified: Verified | None
    grid: Grid | None


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
        "software": {
            name: found["versions"][name] for name in ("lorakit", "torch", "transformers")
        },
    }
    lab = TrialLab(found, common, _where(config), runner, report)
    ranks, seed = spec.ranks, config.train.seed
    lab.phase = "look"
    lab.count_look()
    lab.phase = "probe"
    probed = _probe(lab, spec, config, found)
    lab.phase = "noise"
    tolerance = _tolerance(lab, spec, probed, seed)
    report({"kind": "decided", "text": f"rate {probed.rate:g}; tolerance {tolerance.words}"})

    judge = Judge(
        lambda rank, reference: gap(rank, reference, generator=generator(), level=spec.level),
        tolerance.nats,
        spec.undecided,
    )
    lab.phase = "search"
    made = _search(lab, spec, judge, probed.rate, seed)
    for text in made.steps_taken:
        report({"kind": "decided", "text": text})
    little = tolerance.nats(made.pair[1].loss)
    sure = surely(*made.pair, little, generator=generator())
    choice = choose(
        made.gaps, made.reference, little, ranks, undecided=spec.undecided, confidence=sure
    )
    rank, run = made.rank, Run(made.rank, probed.rate, seed)

    scored = None
    if spec.metric is not None:
        lab.phase = "metric"
        scored = _by_metric(lab, spec, config, run)
        rank = scored.rank
        run = Run(rank, probed.rate, seed)
    if rank == made.rank:
        place = lab.made(made.how, rank, run)
        measured = [e.measured for e in made.evidence if e.rank == rank and e.how == made.how][-1]
    else:
        place, measured = lab.place(run), lab.points[run][lab.steps]

    layered = None
    if spec.per_layer:
        lab.phase = "layers"
        layered = _by_layer(lab, spec, judge, run, root)
    verified = None
    if spec.verify:
        lab.phase = "verify"
        verified = _verify(lab, spec, judge, run)
    whole = None
    if spec.exhaustive:
        lab.phase = "grid"
        whole = _grid(lab, spec, probed, seed, rank)
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


def _probe(lab: TrialLab, spec: RankSpec, config: RunConfig, found: Mapping[str, Any]) -> Probed:
    """Rates at a middle rank: with the scale alpha/r the best one hardly depends on the rank."""
    rank, seed = spec.ranks[len(spec.ranks) // 2], config.train.seed
    given = config.train.learning_rate
    if given != "auto":
        return Probed(float(given), rank, (), False)
    rule = found["rate_by_rule"]["short" if lab.steps < 100 else "long"]
    left, tried = grid(rule, spec.rates, spec.rate_factor), []
    plan = rounds(spec.rates, spec.probe_share, lab.steps)
    for number, each in enumerate(plan, start=1):
        runs = [Run(rank, rate, seed) for rate in left]
        losses = {run.rate: made.loss for run, made in lab.short(runs, each.steps).items()}
        tried += [(number, each.steps, rate, loss) for rate, loss in losses.items()]
        left = survivors(losses, plan[number].rates if number < len(plan) else 1)
    return Probed(
        left[0], rank, tuple(tried), at_edge(left[0], [r for n, _, r, _ in tried if n == 1])
    )


def _tolerance(lab: TrialLab, spec: RankSpec, probed: Probed, seed: int) -> Tolerance:
    """As given, or the noise of short runs; the probe's last run is the first of them."""
    share = spec.share()
    if share is not None:
        return tolerance_of(share, [])
    steps = max(1, math.ceil(spec.probe_share * lab.steps))
    known = [
        loss for _, n, rate, loss in probed.tried if n == steps and rate == probed.rate and loss
    ][:1]
    seeds = range(seed + len(known), seed + spec.noise_seeds)
    runs = [Run(probed.rank, probed.rate, each) for each in seeds]
    losses = known + [made.loss for made in lab.short(runs, steps).values() if made.loss]
    if len(losses) < 2:
        raise DivergedError(
            f"short runs at rate {probed.rate:g} diverged with other seeds: give a lower "
            "--learning-rate"
        )
    return tolerance_of(None, losses)


def _search(lab: TrialLab, spec: RankSpec, judge: Judge, rate: float, seed: int) -> Found:
    ranks = spec.ranks
    match spec.method:
        case "bracket":
            return search.bracket(
                lab, ranks, rate, seed, judge, rungs=spec.rungs, decide_at=spec.decide_at
            )
        case "heal":
            return search.heal(lab, ranks, rate, seed, judge, heal_share=spec.heal_share)
        case "nested":
            return search.nested(lab, ranks, rate, seed, judge, heal_share=spec.heal_share)
        case "halving":
            return search.halving(lab, ranks, rate, seed, judge)


def _by_metric(lab: TrialLab, spec: RankSpec, config: RunConfig, run: Run) -> Scored:
    """The lowest, the chosen with its neighbours, and the highest rank, by their answers.

    The smallest whose score is not below the best one's, as far as the rows can tell.
    """
    assert spec.metric is not None
    wanted = sorted({spec.ranks[0], *_beside(spec.ranks, run.rank), spec.ranks[-1]})
    runs = [Run(rank, run.rate, run.seed) for rank in wanted]
    lab.train(runs, lab.steps)
    asking = {
        "metric": spec.metric,
        "samples": config.output.samples,
        "max_new_tokens": config.output.max_new_tokens,
    }
    told = {r.rank: lab.ask(lab.place(r), r.rank, asking)["scores"]["metrics"][0] for r in runs}
    values = {rank: float(one["value"]) for rank, one in told.items()}
    best = max(values, key=lambda rank: (values[rank], -rank))
    gaps = {}
    for rank, one_score in told.items():
        if rank != best and one_score["rows"] is not None and len(one_score["rows"]) > 1:
            apart = np.array([one_score["rows"]]) - np.array([told[best]["rows"]])
            gaps[rank] = crossed_mean(apart, generator=generator(), level=2 * spec.level - 1)
    alike = [rank for rank, d in gaps.items() if d.high >= 0] + [best]
    return Scored(spec.metric, values, gaps, min(alike))


def _by_layer(lab: TrialLab, spec: RankSpec, judge: Judge, run: Run, root: Path) -> Layered:
    """Ranks from the singular values of the highest run that there is, trained from scratch."""
    trained = [r for r in lab.points if r.rate == run.rate and not r.pattern]
    source = max(trained, key=lambda r: (r.rank, max(lab.points[r])), default=run)
    if source.rank <= run.rank and run.rank < spec.ranks[-1]:
        source = Run(spec.ranks[-1], run.rate, run.seed)
        lab.train([source], math.ceil(spec.decide_at * lab.steps))
    elif not trained:
        lab.train([source], lab.steps)
    place = lab.place(source)
    spectra = spectra_of(root / place.trial / place.adapter)
    costs = _costs(root / place.trial / place.adapter)
    ranks = allot(spectra, costs, run.rank * sum(costs.values()))
    layered = Run(run.rank, run.rate, run.seed, tuple(sorted(ranks.items())))
    points = lab.train([run, layered], lab.steps)
    d = judge.gap(points[layered], points[run])
    return Layered(ranks, source.rank, d, points[layered].loss, d.high < 0, lab.place(layered))


def _costs(folder: Path) -> dict[str, int]:
    """Parameters of one unit of rank, by module."""
    from lorakit.adapters.pairs import read_stored

    return {path: pair.parameters // pair.rank for path, pair in read_stored(folder).pairs.items()}


def _verify(lab: TrialLab, spec: RankSpec, judge: Judge, run: Run) -> Verified:
    """The rank and its neighbours from the start, with a seed that chose nothing."""
    seed = run.seed + 1000
    runs = [Run(rank, run.rate, seed) for rank in _beside(spec.ranks, run.rank)]
    points = {r.rank: point for r, point in lab.train(runs, lab.steps).items()}
    best = min(points, key=lambda rank: (points[rank].loss, rank))
    gaps = {rank: judge.gap(point, points[best]) for rank, point in points.items() if rank != best}
    little = judge.tolerance(points[best].loss)
    within = best == run.rank or gaps[run.rank].mean <= little
    smaller = [r for r in points if r < run.rank and (r == best or gaps[r].high <= little)]
    losses = {rank: point.loss for rank, point in points.items()}
    return Verified(seed, losses, gaps, best, within and not smaller)


def _grid(lab: TrialLab, spec: RankSpec, probed: Probed, seed: int, rank: int) -> Grid:
    """Every rank with the best rates of the probe and several seeds: what the choice is held to."""
    order = sorted((loss, rate) for rate, loss in probed.first.items() if loss is not None)
    rates = [probed.rate] + [rate for _, rate in order if rate != probed.rate]
    rates = rates[: spec.grid_rates]
    seeds = [seed + i for i in range(spec.grid_seeds)]
    runs = [Run(r, rate, s) for r in spec.ranks for rate in rates for s in seeds]
    points = lab.grid(runs)
    losses = {
        (r, rate): tuple(points[Run(r, rate, s)].loss for s in seeds)
        for r in spec.ranks
        for rate in rates
    }
    best_rank, best_rate = min(losses, key=lambda key: (float(np.mean(losses[key])), key))
    spreads = [float(np.var(each, ddof=1)) for each in losses.values() if len(each) > 1]
    noise = math.sqrt(float(np.mean(spreads))) if spreads else 0.0
    ours = float(np.mean(losses[rank, probed.rate]))
    regret = ours - float(np.mean(losses[best_rank, best_rate]))
    return Grid(losses, best_rank, best_rate, noise, regret)


def _beside(ranks: Sequence[int], rank: int) -> list[int]:
    """A rank and its neighbours among the candidates."""
    at = ranks.index(rank)
    return list(ranks[max(0, at - 1) : at + 2])


def generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)


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


def _stamp(name: str) -> list[Any]:
    """Name, sizes and times of the files that a source names; the name alone where it is no path."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    held = [(str(f), f.stat()) for f in files if f.is_file()]
    return [name, *([file, stat.st_size, stat.st_mtime_ns] for file, stat in held)]
