"""From held-out losses of several ranks to an answer. Pure: the generator is passed in.

With d_r = loss of rank r - loss of the reference, row by row on the same rows, U_r its upper bound
and L_r its lower one (one-sided, each holds with the given certainty), and τ the tolerance:

    equivalent   U_r <= τ   as good as the reference, for what τ is worth
    worse        L_r > τ    too small
    open         else       these rows do not say

The answer is the smallest rank that is equivalent. Where rows leave a rank open, which they often do
when they are few, either it is taken if it is likelier equivalent than not, and the answer says how
likely, or the larger rank is taken (`undecided`). The reference is the best of those that were
trained as long; it is equivalent to itself.

How likely: with s the standard error of the estimate d̂_r, from the bootstrap, d_r is at most τ with
probability Φ((τ - d̂_r) / s) where nothing was known of it before. That is one half at d̂_r = τ: what is
likelier than not is what the estimate says.
"""
# ruff: noqa: N815  (the fields carry their shapes in their names)

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from lorakit.evaluation.crossed import CrossedInterval, crossed_mean

Floats = NDArray[np.float64]
State = Literal["equivalent", "worse", "open"]
Kind = Literal["indistinguishable", "needed", "unsaturated"]
Undecided = Literal["estimate", "larger"]

# The seed noise is estimated from few short runs, which differ more than whole ones: outside of these
# shares of the loss the estimate says more about their luck than about the task, and more than a
# hundredth of the loss is not to be given away unasked.
LEAST_SHARE, MOST_SHARE = 0.001, 0.01


@dataclass(frozen=True, eq=False)
class Measured:
    """Held-out nats of each row, and its supervised tokens: (N,) both.

    `step` is how long it was trained, in steps.
    """

    nats_N: Floats
    tokens_N: Floats
    step: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats_N.sum() / self.tokens_N.sum())


@dataclass(frozen=True)
class LossTolerance:
    """τ as a share of the loss, and where it comes from.

    Attributes:
        share: of the best loss.
        noise: the seed noise that was estimated, as a share.
        runs: short runs that it was estimated from.
        given: whether the user gave the share; else it is the noise, kept within a range.
    """

    share: float
    noise: float
    runs: int
    given: bool

    def nats(self, loss: float) -> float:
        """τ in nats per token, beside a loss."""
        return self.share * loss


def tolerance_of(share: float | None, losses: Sequence[float]) -> LossTolerance:
    """τ as given, or the seed noise: the standard deviation of the losses of equal short runs.

    Args:
        share: as given; None for the noise.
        losses: final losses of short runs that differ by nothing but their seeds; at least two.

    >>> round(tolerance_of(None, [1.000, 1.004, 1.002]).share, 4)
    0.002
    """
    noise = float(f"{stdev(losses) / (sum(losses) / len(losses)):.4g}")
    if share is not None:
        return LossTolerance(share, noise, len(losses), given=True)
    return LossTolerance(min(max(noise, LEAST_SHARE), MOST_SHARE), noise, len(losses), given=False)


def gap(
    rank: Measured | Sequence[Measured],
    reference: Measured | Sequence[Measured],
    *,
    generator: np.random.Generator,
    level: float,
) -> CrossedInterval:
    """d with an interval whose ends are one-sided bounds of this level, in nats per token.

    Args:
        rank, reference: measured on the same rows; several of each are paired by seed.
        generator: of the bootstrap's draws.
        level: certainty of each bound.
    """
    ours, theirs = (
        [each] if isinstance(each, Measured) else list(each) for each in (rank, reference)
    )
    tokens_N = ours[0].tokens_N
    values_KN = np.array(
        [(a.nats_N - b.nats_N) / tokens_N for a, b in zip(ours, theirs, strict=True)]
    )
    return crossed_mean(values_KN, tokens_N, generator=generator, level=2 * level - 1)


def widened(d: CrossedInterval, deviation: float) -> CrossedInterval:
    """d whose bounds hold for another source of chance besides the rows, of this standard deviation."""
    reach = float(ndtri((1 + d.level) / 2)) * deviation
    low, high = (
        d.mean - math.hypot(d.mean - d.low, reach),
        d.mean + math.hypot(d.high - d.mean, reach),
    )
    return replace(d, low=low, high=high)


def state_of(d: CrossedInterval, tolerance: float) -> State:
    """Where d stands to τ, both in nats per token."""
    if d.high <= tolerance:
        return "equivalent"
    return "worse" if d.low > tolerance else "open"


def likely(d: CrossedInterval, tolerance: float) -> float:
    """How likely it is that d is at most τ, both in nats per token; see above.

    >>> from lorakit.evaluation.crossed import CrossedInterval
    >>> wide = CrossedInterval(0.005, -0.028, 0.038, 0.9, 1, 100, 99.0, 4000)  # s = 0.02
    >>> round(likely(wide, 0.01), 2), round(likely(wide, 0.005), 2), round(likely(wide, 0.001), 2)
    (0.6, 0.5, 0.42)
    """
    s = (d.high - d.low) / (2 * float(ndtri((1 + d.level) / 2)))
    if s <= 0:
        return float(d.mean <= tolerance)
    return float(ndtr((tolerance - d.mean) / s))


def suffices(d: CrossedInterval, tolerance: float, undecided: Undecided) -> bool:
    """Whether a rank counts as equivalent, both in nats per token."""
    state = state_of(d, tolerance)
    if state == "open" and undecided == "estimate":
        return d.mean <= tolerance
    return state == "equivalent"


@dataclass(frozen=True)
class Choice:
    """The answer.

    Attributes:
        rank: the smallest that is equivalent.
        kind: whether all ranks are equivalent, some are too small, or even the highest is.
        gaps: d of every rank that was compared; the reference has none.
        states: where each of them stands.
        reference: the rank that the others were held against.
        confidence: how likely d of the chosen rank is to be at most τ, see `likely`; 1 for the
            reference, which is the best there is.
        tolerance: τ in nats per token.
        highest: the highest candidate.
        skipped: ranks below the chosen one that were not compared, though a smaller one was.
    """

    rank: int
    kind: Kind
    gaps: Mapping[int, CrossedInterval]
    states: Mapping[int, State]
    reference: int
    confidence: float
    tolerance: float
    highest: int
    skipped: tuple[int, ...]

    @property
    def below(self) -> list[int]:
        """Ranks below the chosen one that were compared."""
        return [rank for rank in self.states if rank < self.rank]

    def below_in(self, state: State) -> list[int]:
        """Of these, the ones in a state."""
        return [rank for rank in self.below if self.states[rank] == state]


def choose(
    gaps: Mapping[int, CrossedInterval],
    reference: int,
    tolerance: float,
    ranks: Sequence[int],
    *,
    undecided: Undecided = "estimate",
    tolerances: Mapping[int, float] | None = None,
) -> Choice:
    """The smallest rank that is equivalent to the reference.

    Args:
        gaps: d of ranks that were compared, each against the reference as it was then.
        reference: the rank that they were held against.
        tolerance: τ in nats per token.
        ranks: all candidates, rising.
        undecided: what decides where rows leave a rank open.
        tolerances: τ of ranks that were compared beside another loss, such as sooner in the run.
    """
    lowest, highest = ranks[0], ranks[-1]
    tolerance_of_rank = {rank: (tolerances or {}).get(rank, tolerance) for rank in gaps}
    states = {rank: state_of(d, tolerance_of_rank[rank]) for rank, d in gaps.items()}
    enough = [r for r, d in gaps.items() if suffices(d, tolerance_of_rank[r], undecided)]
    rank = min([*enough, reference])
    below = [r for r in states if r < rank]
    kind: Kind = "needed"
    if rank == lowest:
        kind = "indistinguishable"
    elif rank == highest and below and max(below) == ranks[-2]:
        all_worse = all(states[r] != "open" for r in below)
        kind = "unsaturated" if all_worse else "needed"
    return Choice(
        rank=rank,
        kind=kind,
        gaps=dict(gaps),
        states=states,
        reference=reference,
        confidence=likely(gaps[rank], tolerance_of_rank[rank]) if rank in gaps else 1.0,
        tolerance=tolerance,
        highest=highest,
        skipped=tuple(r for r in ranks if max(below, default=rank) < r < rank),
    )


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
    losses: Mapping[float, float | None], rate: float, gaps: Mapping[int, CrossedInterval]
) -> RateEffect | None:
    """Whether a neighbouring learning rate costs more than twice what ranks differ by.

    Args:
        losses: of the probe's first round by rate.
        rate: the chosen one.
        gaps: d of the ranks.
    """
    tried = sorted(losses)
    finite = {r: loss for r, loss in losses.items() if loss is not None}
    if rate not in finite or len(tried) < 2 or not gaps:
        return None
    at = tried.index(rate)
    beside = [tried[i] for i in (at - 1, at + 1) if 0 <= i < len(tried)]
    costs = {r: finite[r] - finite[rate] for r in beside if r in finite}
    spread = max(abs(d.mean) for d in gaps.values())
    if not costs or max(costs.values()) <= 2 * spread:
        return None
    worst = max(costs, key=lambda r: costs[r])
    return RateEffect(spread, rate, worst, costs[worst])


def generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)
