"""What is found out by short runs before ranks are searched: the learning rate and the seed noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.config import RunConfig
from lorakit.errors import DivergedError
from lorakit.ranking.choose import Tolerance, tolerance_of
from lorakit.ranking.lab import TrialLab
from lorakit.ranking.search import Run
from lorakit.ranking.spec import RankSpec
from lorakit.trials.rates import at_edge, grid, rounds, survivors


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


def probe(lab: TrialLab, spec: RankSpec, config: RunConfig, found: Mapping[str, Any]) -> Probed:
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


def tolerance(lab: TrialLab, spec: RankSpec, probed: Probed, seed: int) -> Tolerance:
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
