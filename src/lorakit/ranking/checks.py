"""What may be asked of a search besides its answer: answers by rank, ranks by layer, other seeds, the grid.

Imported only where one of them is asked for. Each gives what result.json holds of it.

Ranks by layer: the singular values of a trained adapter are the evidence. Of all ways to spend the
parameters, the one that leaves the smallest squared error takes singular values in the order of σ²
over what a unit of rank costs in that module, until the budget is spent (greedy, which is optimal but
for the last).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorakit.adapters.pairs import read_stored
from lorakit.config import RunConfig
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean, with_seed_noise
from lorakit.evaluation.scores import Scores
from lorakit.evaluation.verdict import LEVEL, Verdict, share_of_level
from lorakit.evaluation.verdict import judge as judge_difference
from lorakit.ranking.choose import Judge, generator
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.pairs import spectra_of
from lorakit.ranking.probing import RateChoice
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import ANSWER, AnswerRequest, Candidate


@dataclass(frozen=True)
class Scored:
    """What `--metric` says: scores of the ranks that were asked, their differences, and its choice.

    `cut` is a sentence where answers were truncated at the limit.
    """

    name: str
    scores: Mapping[int, float]
    gaps: Mapping[int, CrossedInterval]
    rank: int
    rank_by_loss: int
    cut: str = ""


@dataclass(frozen=True)
class Layered:
    """Ranks by layer beside the same number of parameters in one rank."""

    ranks: Mapping[str, int]
    evidence: str
    difference: CrossedInterval
    loss: float
    verdict: Verdict
    wins: bool


@dataclass(frozen=True)
class Verified:
    """What another seed says of the choice and its neighbours.

    Attributes:
        seed: the other one.
        rank: the choice.
        losses: by rank.
        gaps: of the other ranks from the best of them.
        best: of them.
        verdict: on the choice beside the best; None where it is that.
        held: whether the choice is the best or equal to it; None where that cannot be told.
    """

    seed: int
    rank: int
    losses: Mapping[int, float]
    gaps: Mapping[int, CrossedInterval]
    best: int
    verdict: Verdict | None
    held: bool | None


@dataclass(frozen=True)
class GridPoint:
    """A rank and a rate, with the loss of each seed."""

    rank: int
    rate: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class Grid:
    """The whole grid, its best point, and how much worse the choice is than that.

    Attributes:
        losses: of every point.
        best: rank and rate of the lowest mean.
        seed_noise: standard deviation of a point over its seeds, pooled.
        regret, regret_share: of the choice, in nats per token and as a share.
        verdict: on the choice beside the best point; None where it is that.
    """

    losses: tuple[GridPoint, ...]
    best: Mapping[str, float]
    seed_noise: float
    regret: float
    regret_share: float
    verdict: Verdict | None


def by_metric(lab: TrialLab, spec: RankSpec, config: RunConfig, candidate: Candidate) -> Scored:
    """The lowest, the chosen with its neighbours, and the highest rank, by their answers.

    The smallest whose score is not below the best one's, as far as the rows can tell.
    """
    wanted = sorted({spec.ranks[0], *_beside(spec.ranks, candidate.rank), spec.ranks[-1]})
    candidates = [Candidate(rank, candidate.rate, candidate.seed) for rank in wanted]
    lab.train(candidates, lab.steps)
    every = {each.rank: _scores(lab, spec, config, each) for each in candidates}
    scores = {rank: each.headline for rank, each in every.items()}
    cut = "; ".join(f"rank {rank}: {each.cut}" for rank, each in every.items() if each.cut)
    values = {rank: score.value for rank, score in scores.items()}
    best = max(values, key=lambda rank: (values[rank], -rank))
    gaps = {}
    for rank, score in scores.items():
        if rank != best and score.rows is not None and len(score.rows) > 1:
            apart = np.array([score.rows]) - np.array([scores[best].rows])
            low, high = score.range
            gaps[rank] = crossed_mean(
                apart,
                generator=generator(),
                level=2 * spec.level - 1,
                bounds=(low - high, high - low),
            )
    no_worse = [rank for rank, d in gaps.items() if d.high >= 0] + [best]
    return Scored(str(spec.metric), values, gaps, min(no_worse), candidate.rank, cut)


def _scores(lab: TrialLab, spec: RankSpec, config: RunConfig, candidate: Candidate) -> Scores:
    """The scores of a candidate's answers to held-out prompts."""
    samples, base = config.output.samples, lab.profile.profile
    request = AnswerRequest(
        lab.stamp,
        lab.adapter(candidate),
        str(spec.metric),
        samples,
        config.output.answer_limit,
    )
    _, result = lab.run(ANSWER, request, f"answers of rank {candidate.rank}")
    prompts = base.eval_tokens * min(1.0, samples / max(1, base.eval_rows))
    lab.count_evaluation(candidate.rank, result.tokens + prompts)
    return result.scores


def by_layer(
    lab: TrialLab, spec: RankSpec, judge: Judge, candidate: Candidate, root: Path
) -> tuple[Layered, Candidate]:
    """Ranks from the singular values of the highest run that there is, trained from scratch."""
    rate, seed = candidate.rate, candidate.seed
    trained = [each for each in lab.points if each.rate == rate and not each.pattern]
    source = max(trained, key=lambda each: (each.rank, max(lab.points[each])), default=candidate)
    if source.rank <= candidate.rank and candidate.rank < spec.ranks[-1]:
        source = Candidate(spec.ranks[-1], rate, seed)
        lab.train([source], math.ceil(spec.decide_at * lab.steps))
    elif not trained:
        lab.train([source], lab.steps)
    folder = lab.adapter(source).folder(root)
    pairs = read_stored(folder).pairs
    costs = {path: pair.parameters // pair.rank for path, pair in pairs.items()}
    ranks = allot(spectra_of(folder), costs, candidate.rank * sum(costs.values()))
    by_module = Candidate(candidate.rank, rate, seed, tuple(sorted(ranks.items())))
    losses = lab.train([candidate, by_module], lab.steps)
    gap = judge.compare(losses[by_module], losses[candidate], lab.steps)
    evidence, loss = f"singular values of an adapter of rank {source.rank}", losses[by_module].loss
    wins = gap.verdict.word == "better"
    return Layered(ranks, evidence, gap.difference, loss, gap.verdict, wins), by_module


def allot(
    spectra: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int
) -> dict[str, int]:
    """The rank of each module: at least 1, together at most `budget` parameters.

    Args:
        spectra: singular values of each module, from the largest down.
        costs: parameters of one unit of rank in each module.
        budget: parameters in all.

    >>> allot({"a": [3.0, 2.9], "b": [1.0, 0.1]}, {"a": 10, "b": 10}, 30)
    {'a': 2, 'b': 1}
    """
    ranks = dict.fromkeys(spectra, 1)
    left = budget - sum(costs[path] for path in spectra)
    offers = sorted(
        (
            (values[k] ** 2 / costs[path], path, k)
            for path, values in spectra.items()
            for k in range(1, len(values))
        ),
        key=lambda offer: (-offer[0], offer[1], offer[2]),
    )
    for _, path, k in offers:
        # In a module the values fall, so that its offers come in their order.
        if costs[path] <= left and ranks[path] == k:
            ranks[path] += 1
            left -= costs[path]
    return ranks


def verify(lab: TrialLab, spec: RankSpec, judge: Judge, candidate: Candidate) -> Verified:
    """The rank and its neighbours from the start, with a seed that chose nothing."""
    seed = candidate.seed + 1000
    wanted = [Candidate(rank, candidate.rate, seed) for rank in _beside(spec.ranks, candidate.rank)]
    rows = {each.rank: losses for each, losses in lab.train(wanted, lab.steps).items()}
    best = min(rows, key=lambda rank: (rows[rank].loss, rank))
    gaps = {r: judge.compare(rows[r], rows[best], lab.steps) for r in rows if r != best}
    losses = {rank: of_rank.loss for rank, of_rank in rows.items()}
    differences = {rank: gap.difference for rank, gap in gaps.items()}
    if candidate.rank == best:
        return Verified(seed, candidate.rank, losses, differences, best, None, held=True)
    verdict = gaps[candidate.rank].verdict
    held = verdict.word != "worse" if verdict.told else None
    return Verified(seed, candidate.rank, losses, differences, best, verdict, held)


def grid(
    lab: TrialLab, spec: RankSpec, judge: Judge, probed: RateChoice, candidate: Candidate
) -> Grid:
    """Every rank with the best rates of the probe and several seeds: what the choice is held to."""
    order = sorted((loss, rate) for rate, loss in probed.first.items() if loss is not None)
    rates = [probed.rate] + [rate for _, rate in order if rate != probed.rate]
    rates = rates[: spec.grid_rates]
    seeds = [candidate.seed + i for i in range(spec.grid_seeds)]
    wanted = [Candidate(r, rate, s) for r in spec.ranks for rate in rates for s in seeds]
    rows = lab.train(wanted, lab.steps, concurrent=1)
    points = [
        GridPoint(r, rate, tuple(rows[Candidate(r, rate, s)].loss for s in seeds))
        for r in spec.ranks
        for rate in rates
    ]
    best = min(points, key=lambda point: (point.mean, point.rank, point.rate))
    (ours,) = (p for p in points if (p.rank, p.rate) == (candidate.rank, probed.rate))
    spreads = [float(np.var(p.losses, ddof=1)) for p in points if len(p.losses) > 1]
    noise = math.sqrt(float(np.mean(spreads))) if spreads else 0.0
    regret = ours.mean - best.mean
    lowest = min(math.fsum(p.losses) / len(p.losses) for p in points)
    at = {"rank": best.rank, "rate": best.rate}
    verdict = None if ours is best else _beside_best(judge, points, ours, best, noise)
    return Grid(tuple(points), at, noise, regret, regret / lowest, verdict)


def _beside_best(
    judge: Judge, points: Sequence[GridPoint], ours: GridPoint, best: GridPoint, noise: float
) -> Verdict:
    """The choice beside the best of the grid, by the seed noise of all points together.

    The best was picked by these very losses: the interval holds for all points at once.
    """
    seeds, d = len(ours.losses), None
    if seeds > 1:
        level, degrees = share_of_level(LEVEL, len(points) - 1), len(points) * (seeds - 1)
        mean = ours.mean - best.mean
        point = CrossedInterval(mean, mean, mean, level, seeds, 2, 1.0, 0)
        d = replace(with_seed_noise(point, 2 * noise**2 / seeds, degrees), rows=0)
    return judge_difference(
        d,
        judge.tolerance.margin * best.mean,
        least_rows=0,
        refused=judge.refused,
        more_seeds="more --grid-seeds",
    )


def _beside(ranks: Sequence[int], rank: int) -> list[int]:
    """A rank and its neighbours among the candidates."""
    at = ranks.index(rank)
    return list(ranks[max(0, at - 1) : at + 2])
