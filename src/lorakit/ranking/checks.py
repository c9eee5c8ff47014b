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
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.layers import allot
from lorakit.ranking.pairs import spectra_of
from lorakit.ranking.probing import RateChoice
from lorakit.ranking.search import Candidate, Judge
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import AdapterRef


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
    adapter: AdapterRef


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


def by_metric(lab: TrialLab, spec: RankSpec, config: RunConfig, candidate: Candidate) -> Scored:
    """The lowest, the chosen with its neighbours, and the highest rank, by their answers.

    The smallest whose score is not below the best one's, as far as the rows can tell.
    """
    assert spec.metric is not None
    wanted = sorted({spec.ranks[0], *_beside(spec.ranks, candidate.rank), spec.ranks[-1]})
    candidates = [Candidate(rank, candidate.rate, candidate.seed) for rank in wanted]
    lab.train(candidates, lab.steps)
    output = config.output
    scores = {
        each.rank: lab.answer(each, spec.metric, output.samples, output.max_new_tokens)
        for each in candidates
    }
    values = {rank: score.value for rank, score in scores.items()}
    best = max(values, key=lambda rank: (values[rank], -rank))
    gaps = {}
    for rank, score in scores.items():
        if rank != best and score.rows is not None and len(score.rows) > 1:
            apart = np.array([score.rows]) - np.array([scores[best].rows])
            gaps[rank] = crossed_mean(apart, generator=generator(), level=2 * spec.level - 1)
    no_worse = [rank for rank, d in gaps.items() if d.high >= 0] + [best]
    return Scored(spec.metric, values, gaps, min(no_worse))


def by_layer(
    lab: TrialLab, spec: RankSpec, judge: Judge, candidate: Candidate, root: Path
) -> Layered:
    """Ranks from the singular values of the highest run that there is, trained from scratch."""
    rate, seed = candidate.rate, candidate.seed
    trained = [each for each in lab.points if each.rate == rate and not each.pattern]
    source = max(trained, key=lambda each: (each.rank, max(lab.points[each])), default=candidate)
    if source.rank <= candidate.rank and candidate.rank < spec.ranks[-1]:
        source = Candidate(spec.ranks[-1], rate, seed)
        lab.train([source], math.ceil(spec.decide_at * lab.steps))
    elif not trained:
        lab.train([source], lab.steps)
    adapter = lab.adapter(source)
    folder = root / adapter.trial / adapter.adapter
    costs = _costs(folder)
    ranks = allot(spectra_of(folder), costs, candidate.rank * sum(costs.values()))
    by_module = Candidate(candidate.rank, rate, seed, tuple(sorted(ranks.items())))
    points = lab.train([candidate, by_module], lab.steps)
    d = judge.gap(points[by_module], points[candidate])
    return Layered(
        ranks=ranks,
        evidence=source.rank,
        difference=d,
        loss=points[by_module].loss,
        wins=d.high < 0,
        adapter=lab.adapter(by_module),
    )


def _costs(folder: Path) -> dict[str, int]:
    """Parameters of one unit of rank, by module."""
    return {path: pair.parameters // pair.rank for path, pair in read_stored(folder).pairs.items()}


def verify(lab: TrialLab, spec: RankSpec, judge: Judge, candidate: Candidate) -> Verified:
    """The rank and its neighbours from the start, with a seed that chose nothing."""
    seed = candidate.seed + 1000
    wanted = [Candidate(rank, candidate.rate, seed) for rank in _beside(spec.ranks, candidate.rank)]
    points = {each.rank: point for each, point in lab.train(wanted, lab.steps).items()}
    best = min(points, key=lambda rank: (points[rank].loss, rank))
    gaps = {rank: judge.gap(point, points[best]) for rank, point in points.items() if rank != best}
    tolerance = judge.tolerance(points[best].loss)
    enough = best == candidate.rank or gaps[candidate.rank].mean <= tolerance
    smaller = [
        rank
        for rank in points
        if rank < candidate.rank and (rank == best or gaps[rank].high <= tolerance)
    ]
    losses = {rank: point.loss for rank, point in points.items()}
    return Verified(seed, losses, gaps, best, enough and not smaller)


def grid(lab: TrialLab, spec: RankSpec, probed: RateChoice, seed: int, rank: int) -> Grid:
    """Every rank with the best rates of the probe and several seeds: what the choice is held to."""
    order = sorted((loss, rate) for rate, loss in probed.first.items() if loss is not None)
    rates = [probed.rate] + [rate for _, rate in order if rate != probed.rate]
    rates = rates[: spec.grid_rates]
    seeds = [seed + i for i in range(spec.grid_seeds)]
    wanted = [Candidate(r, rate, s) for r in spec.ranks for rate in rates for s in seeds]
    points = lab.grid(wanted)
    losses = {
        (r, rate): tuple(points[Candidate(r, rate, s)].loss for s in seeds)
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
