"""What short runs find out before ranks are searched: the learning rate and the seed noise."""

import math
from dataclasses import dataclass
from statistics import fmean

from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.experiments.rates import ProbePoint, RateRule, at_edge, grid, survivors
from lorakit.ranking.choose import LossTolerance, gap, generator, tolerance_of
from lorakit.ranking.lab import ShortRun, TrialLab
from lorakit.ranking.search import Candidate
from lorakit.ranking.spec import RankSpec


@dataclass(frozen=True)
class RateChoice:
    """The rates that were tried, and the one chosen.

    Attributes:
        rate: the one chosen.
        rank: at which they were tried.
        points: of the second round the loss is the mean over seeds.
        at_edge: whether the chosen one is the lowest or the highest of those tried.
        steps: of a short run.
        losses: of the chosen rate's short runs, by seed.
    """

    rate: float
    rank: int
    points: tuple[ProbePoint, ...]
    at_edge: bool
    steps: int
    losses: tuple[float, ...]

    @property
    def first(self) -> dict[float, float | None]:
        """Losses of the first round, in which all rates were tried."""
        return {point.rate: point.loss for point in self.points if point.round == 1}


def probe(lab: TrialLab, spec: RankSpec, config: RunConfig, rule: RateRule) -> RateChoice:
    """Rates at a middle rank: with the scale alpha/r the best one hardly depends on the rank.

    All rates once; of the better two, where the held-out rows leave open which is better, the one
    with the lower mean over `noise_seeds` seeds. In so short a run a seed makes more of a
    difference than a few steps more would.
    """
    rank, seed = spec.ranks[len(spec.ranks) // 2], config.train.seed
    learning_rate = config.train.learning_rate
    steps = max(1, math.ceil(spec.probe_share * lab.steps))
    if learning_rate != "auto":
        return RateChoice(float(learning_rate), rank, (), at_edge=False, steps=steps, losses=())
    rates = grid(rule.rate(lab.steps), spec.rates, spec.rate_factor)
    if len(rates) == 1:
        return RateChoice(rates[0], rank, (), at_edge=False, steps=steps, losses=())
    once = lab.short([Candidate(rank, rate, seed) for rate in rates], steps)
    short = {candidate.rate: run for candidate, run in once.items()}
    losses = {rate: run.loss for rate, run in short.items()}
    points = [ProbePoint(1, steps, rate, loss) for rate, loss in losses.items()]
    (best,) = survivors(losses, 1)
    left = [
        rate
        for rate in survivors(losses, 2)
        if rate == best or not _is_worse(short[rate], short[best], spec.level)
    ]
    by_seed = {rate: [losses[rate]] for rate in left}
    if len(left) > 1:
        seeds = range(seed + 1, seed + spec.noise_seeds)
        again = lab.short([Candidate(rank, rate, each) for rate in left for each in seeds], steps)
        for candidate, run in again.items():
            by_seed[candidate.rate].append(run.loss)
        means = {rate: _mean(each) for rate, each in by_seed.items()}
        points += [ProbePoint(2, steps, rate, loss) for rate, loss in means.items()]
        (best,) = survivors(means, 1)
    known = tuple(loss for loss in by_seed[best] if loss is not None)
    return RateChoice(best, rank, tuple(points), at_edge(best, rates), steps, known)


def _is_worse(rate: ShortRun, best: ShortRun, level: float) -> bool:
    """Whether the rows show a short run to be worse than the best one, which has the lower loss."""
    assert rate.measured is not None  # survivors did not diverge
    assert best.measured is not None
    return gap(rate.measured, best.measured, generator=generator(), level=level).low > 0


def _mean(losses: list[float | None]) -> float | None:
    """None if one diverged."""
    finite = [loss for loss in losses if loss is not None]
    return fmean(finite) if len(finite) == len(losses) else None


def tolerance(lab: TrialLab, spec: RankSpec, probed: RateChoice, seed: int) -> LossTolerance:
    """As given, or the noise of short runs that differ in their seed alone, the probe's among them.

    The noise is estimated in either case: how far unfinished runs are to be believed rests on it.
    """
    seeds = range(seed + len(probed.losses), seed + spec.noise_seeds)
    candidates = [Candidate(probed.rank, probed.rate, each) for each in seeds]
    more = [run.loss for run in lab.short(candidates, probed.steps).values()]
    losses = [*probed.losses, *(loss for loss in more if loss is not None)]
    if len(losses) < 2:
        raise DivergedError(
            f"short runs at rate {probed.rate:g} diverged with other seeds: give a lower "
            "--learning-rate"
        )
    return tolerance_of(spec.share(), losses)
