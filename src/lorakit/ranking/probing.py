"""What short runs find out before ranks are searched: the learning rate and the seed noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.experiments.measuring import RowLosses
from lorakit.experiments.rates import ProbePoint, RateRule, at_edge, grid, survivors
from lorakit.ranking.choose import Gap, LossTolerance, paired_difference, tolerance_of
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
    """

    rate: float
    rank: int
    steps: int
    points: tuple[ProbePoint, ...] = ()
    at_edge: bool = False
    losses: tuple[float, ...] = ()

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
    return RateChoice(best, rank, steps, tuple(points), at_edge(best, rates), finite)


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
        spread: the largest difference between ranks, nats per token.
        rate: the chosen one.
        worse_rate: a neighbour, and its `cost` in the probe.
    """

    spread: float
    rate: float
    worse_rate: float
    cost: float


def rate_effect(
    losses: Mapping[float, float | None], rate: float, gaps: Mapping[int, Gap]
) -> RateEffect | None:
    """Whether a neighbouring learning rate costs more than twice what ranks differ by.

    Args:
        losses: of the probe's first round by rate.
        rate: the chosen one.
        gaps: of the ranks.
    """
    tried = sorted(losses)
    finite = {r: loss for r, loss in losses.items() if loss is not None}
    if rate not in finite or len(tried) < 2 or not gaps:
        return None
    at = tried.index(rate)
    beside = [tried[i] for i in (at - 1, at + 1) if 0 <= i < len(tried)]
    costs = {r: finite[r] - finite[rate] for r in beside if r in finite}
    spread = max(abs(gap.difference.mean) for gap in gaps.values())
    if not costs or max(costs.values()) <= 2 * spread:
        return None
    worst = max(costs, key=lambda r: costs[r])
    return RateEffect(spread, rate, worst, costs[worst])
