"""What may be asked of a search besides its answer: answers by rank, ranks by layer, other seeds, the grid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorakit.adapters.pairs import read_stored
from lorakit.config import RunConfig
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean
from lorakit.ranking.choose import generator
from lorakit.ranking.lab import Place, TrialLab
from lorakit.ranking.layers import allot
from lorakit.ranking.probing import Probed
from lorakit.ranking.search import Judge, Run
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.workers import spectra_of


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


def by_metric(lab: TrialLab, spec: RankSpec, config: RunConfig, run: Run) -> Scored:
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


def by_layer(lab: TrialLab, spec: RankSpec, judge: Judge, run: Run, root: Path) -> Layered:
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
    return {path: pair.parameters // pair.rank for path, pair in read_stored(folder).pairs.items()}


def verify(lab: TrialLab, spec: RankSpec, judge: Judge, run: Run) -> Verified:
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


def grid(lab: TrialLab, spec: RankSpec, probed: Probed, seed: int, rank: int) -> Grid:
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
