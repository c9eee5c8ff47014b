"""What short runs find out before ranks are searched: the learning rate and the seed noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.evaluation.crossed import with_seed_noise
from lorakit.evaluation.verdict import LEAST_ROWS, LEVEL, share_of_level
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.rates import ProbePoint, RateRule, at_edge, grid, survivors
from lorakit.ranking.choose import (
    Gap,
    LossTolerance,
    paired_difference,
    paired_interval,
    tolerance_of,
)
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.spec import RankSpec
from lorakit.ranking.trials import Candidate


@dataclass(frozen=True)
class RateChoice:
    """The rates that were tried, and the one chosen.

    Attributes:
        rate: the one chosen.
        rank: at which they were tried.
        steps: of a short run.
        points: of the second round the loss is the mean over seeds.
        at_edge: whether the chosen one is the lowest or the highest of those tried.
        losses: of the chosen rate's short runs, by seed.
        rows: losses of the held-out rows of the first round, by rate.
    """

    rate: float
    rank: int
    steps: int
    points: tuple[ProbePoint, ...] = ()
    at_edge: bool = False
    losses: tuple[float, ...] = ()
    rows: Mapping[float, RowLosses | None] = field(default_factory=dict)

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
    steps = max(1, math.ceil(spec.probe_share * lab.steps))
    if config.train.learning_rate != "auto":
        return RateChoice(float(config.train.learning_rate), rank, steps)
    rates = grid(rule.rate(lab.steps), spec.rates, spec.rate_factor)
    if len(rates) == 1:
        return RateChoice(rates[0], rank, steps)
    runs = lab.short([Candidate(rank, rate, seed) for rate in rates], steps)
    rows = {candidate.rate: losses for candidate, losses in runs.items()}
    losses = {rate: None if of_rows is None else of_rows.loss for rate, of_rows in rows.items()}
    points = [ProbePoint(1, steps, rate, loss) for rate, loss in losses.items()]
    (best,) = survivors(losses, 1)
    contenders = [
        rate
        for rate in survivors(losses, 2)
        if rate == best or not _is_worse(rows[rate], rows[best], spec.level)
    ]
    by_seed = {rate: [losses[rate]] for rate in contenders}
    if len(contenders) > 1:
        seeds = range(seed + 1, seed + spec.noise_seeds)
        again = lab.short(
            [Candidate(rank, rate, each) for rate in contenders for each in seeds], steps
        )
        for candidate, of_rows in again.items():
            by_seed[candidate.rate].append(None if of_rows is None else of_rows.loss)
        means = {rate: _mean(each) for rate, each in by_seed.items()}
        points += [ProbePoint(2, steps, rate, loss) for rate, loss in means.items()]
        (best,) = survivors(means, 1)
    finite = tuple(loss for loss in by_seed[best] if loss is not None)
    return RateChoice(best, rank, steps, tuple(points), at_edge(best, rates), finite, rows)


def _is_worse(rate: RowLosses | None, best: RowLosses | None, level: float) -> bool:
    """Whether the rows show a short run to be worse than the best one, which has the lower loss."""
    assert rate is not None  # survivors did not diverge
    assert best is not None
    return paired_difference(rate, best, level).low > 0


def _mean(losses: list[float | None]) -> float | None:
    """None if one diverged."""
    finite = [loss for loss in losses if loss is not None]
    return fmean(finite) if len(finite) == len(losses) else None


def seed_noise(lab: TrialLab, spec: RankSpec, probed: RateChoice, seed: int) -> LossTolerance:
    """τ as given, or the noise of short runs that differ in their seed alone, the probe's among them.

    The noise is estimated in either case: how far unfinished runs are to be believed rests on it.

    Raises:
        DivergedError: all of these runs but one diverged.
    """
    seeds = range(seed + len(probed.losses), seed + spec.noise_seeds)
    candidates = [Candidate(probed.rank, probed.rate, each) for each in seeds]
    more = [losses.loss for losses in lab.short(candidates, probed.steps).values() if losses]
    losses = [*probed.losses, *more]
    if len(losses) < 2:
        raise DivergedError(
            f"short runs at rate {probed.rate:g} diverged with other seeds: give a lower "
            "--learning-rate"
        )
    return tolerance_of(spec.share(), losses)


@dataclass(frozen=True)
class RateEffect:
    """That a neighbouring learning rate costs more than any rank.

    Attributes:
        spread: below which every difference between ranks lies, nats per token.
        rate: the chosen one.
        worse_rate: a neighbour, its `cost` in short runs, and the `least` that this may be.
    """

    spread: float
    rate: float
    worse_rate: float
    cost: float
    least: float


def rate_effect(
    probed: RateChoice, tolerance: LossTolerance, gaps: Mapping[int, Gap]
) -> RateEffect | None:
    """Whether a neighbouring learning rate certainly costs more than ranks can differ by.

    The lower bound of what it costs is held against the farther bound of every difference between
    ranks; each bound is over rows and seeds.

    Args:
        probed: the rates of the first round, and the chosen one.
        tolerance: with the seed noise of short runs.
        gaps: of the ranks.
    """
    ranks = [gap.verdict.difference for gap in gaps.values()]
    known = [d for d in ranks if d is not None]
    best, tried = probed.rows.get(probed.rate), sorted(probed.rows)
    if best is None or len(best.nats) < LEAST_ROWS or not known or len(known) < len(ranks):
        return None
    spread = max(max(abs(d.low), abs(d.high)) for d in known)
    at, found = tried.index(probed.rate), []
    level = share_of_level(LEVEL, 2)
    variance = 2 * tolerance.seed_deviation(best.loss) ** 2
    for rate in [tried[i] for i in (at - 1, at + 1) if 0 <= i < len(tried)]:
        rows = probed.rows[rate]
        if rows is not None:
            d = with_seed_noise(paired_interval(rows, best, level), variance, tolerance.runs - 1)
            found.append(RateEffect(spread, probed.rate, rate, d.mean, d.low))
    worst = max(found, key=lambda each: each.least, default=None)
    return worst if worst is not None and worst.least > spread else None
