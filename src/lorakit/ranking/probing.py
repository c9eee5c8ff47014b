"""What is found out by short runs before ranks are searched: the learning rate and the seed noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.experiments.rates import at_edge, grid, survivors
from lorakit.ranking.choose import Tolerance, gap, generator, tolerance_of
from lorakit.ranking.lab import Short, TrialLab
from lorakit.ranking.search import Run
from lorakit.ranking.spec import RankSpec


@dataclass(frozen=True)
class Probed:
    """The rates that were tried, by round: steps, rate, loss; and the one chosen.

    Attributes:
        rate: the one chosen.
        rank: at which they were tried.
        tried: round, steps, rate, loss (in the second round the mean over seeds; None: diverged).
        at_edge: whether the chosen one is the lowest or the highest of those tried.
        steps: of a short run.
        losses: of the chosen rate's short runs, by seed.
    """

    rate: float
    rank: int
    tried: tuple[tuple[int, int, float, float | None], ...]
    at_edge: bool
    steps: int
    losses: tuple[float, ...]

    @property
    def first(self) -> dict[float, float | None]:
        """Losses of the first round, in which all rates were tried."""
        return {rate: loss for number, _, rate, loss in self.tried if number == 1}


def probe(lab: TrialLab, spec: RankSpec, config: RunConfig, found: Mapping[str, Any]) -> Probed:
    """Rates at a middle rank: with the scale alpha/r the best one hardly depends on the rank.

    All rates once; of the better two, where the held-out rows do not tell them apart, the one with
    the lower mean over `noise_seeds` seeds. In so short a run a seed makes more of a difference
    than a few steps more would.
    """
    rank, seed = spec.ranks[len(spec.ranks) // 2], config.train.seed
    given = config.train.learning_rate
    steps = max(1, math.ceil(spec.probe_share * lab.steps))
    rule = found["rate_by_rule"]["short" if lab.steps < 100 else "long"]
    rates = grid(rule, spec.rates, spec.rate_factor) if given == "auto" else (float(given),)
    if len(rates) == 1:
        return Probed(rates[0], rank, (), False, steps, ())
    once = lab.short([Run(rank, rate, seed) for rate in rates], steps)
    made = {run.rate: one for run, one in once.items()}
    losses = {rate: one.loss for rate, one in made.items()}
    tried = [(1, steps, rate, loss) for rate, loss in losses.items()]
    (best,) = survivors(losses, 1)
    left = [
        rate
        for rate in survivors(losses, 2)
        if rate == best or not _worse(made[rate], made[best], spec.level)
    ]
    by_seed = {rate: [losses[rate]] for rate in left}
    if len(left) > 1:
        seeds = range(seed + 1, seed + spec.noise_seeds)
        again = lab.short([Run(rank, rate, each) for rate in left for each in seeds], steps)
        for run, one in again.items():
            by_seed[run.rate].append(one.loss)
        means = {rate: _mean(each) for rate, each in by_seed.items()}
        tried += [(2, steps, rate, loss) for rate, loss in means.items()]
        (best,) = survivors(means, 1)
    known = tuple(loss for loss in by_seed[best] if loss is not None)
    return Probed(best, rank, tuple(tried), at_edge(best, rates), steps, known)


def _worse(rate: Short, best: Short, level: float) -> bool:
    """Whether the rows tell a short run from the best one, which has the lower loss."""
    assert rate.measured is not None  # survivors did not diverge
    assert best.measured is not None
    return gap(rate.measured, best.measured, generator=generator(), level=level).low > 0


def _mean(losses: list[float | None]) -> float | None:
    """None if one diverged."""
    finite = [loss for loss in losses if loss is not None]
    return fmean(finite) if len(finite) == len(losses) else None


def tolerance(lab: TrialLab, spec: RankSpec, probed: Probed, seed: int) -> Tolerance:
    """As given, or the noise of short runs that differ in their seed alone, the probe's among them.

    The noise is estimated in either case: how far unfinished runs are to be believed rests on it.
    """
    seeds = range(seed + len(probed.losses), seed + spec.noise_seeds)
    runs = [Run(probed.rank, probed.rate, each) for each in seeds]
    more = [one.loss for one in lab.short(runs, probed.steps).values()]
    losses = [*probed.losses, *(loss for loss in more if loss is not None)]
    if len(losses) < 2:
        raise DivergedError(
            f"short runs at rate {probed.rate:g} diverged with other seeds: give a lower "
            "--learning-rate"
        )
    return tolerance_of(spec.share(), losses)
