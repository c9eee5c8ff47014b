"""From held-out losses of several ranks to an answer. Pure: nothing here trains or measures.

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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from lorakit.evaluation.crossed import CrossedInterval, crossed_mean
from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.spec import Undecided

State = Literal["equivalent", "worse", "open"]
Kind = Literal["indistinguishable", "needed", "unsaturated"]

# The seed noise is estimated from few short runs, which differ more than whole ones: outside of these
# shares of the loss the estimate says more about their luck than about the task, and more than a
# hundredth of the loss is not to be given away unasked.
LEAST_SHARE, MOST_SHARE = 0.001, 0.01


@dataclass(frozen=True)
class LossTolerance:
    """τ as a share of the loss, and where it comes from.

    Attributes:
        share: of the best loss.
        noise: the seed noise that was estimated, as a share.
        runs: short runs that it was estimated from.
        from_user: whether the user gave the share; else it is the noise, kept within a range.
    """

    share: float
    noise: float
    runs: int
    from_user: bool

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
        return LossTolerance(share, noise, len(losses), from_user=True)
    return LossTolerance(
        min(max(noise, LEAST_SHARE), MOST_SHARE), noise, len(losses), from_user=False
    )


@dataclass(frozen=True)
class Gap:
    """d of a rank that was compared with the reference, and τ beside the reference's loss.

    Both are in nats per token; the ends of the interval are one-sided bounds.
    """

    difference: CrossedInterval
    tolerance: float

    @property
    def state(self) -> State:
        """Where d stands to τ."""
        if self.difference.high <= self.tolerance:
            return "equivalent"
        return "worse" if self.difference.low > self.tolerance else "open"

    @property
    def confidence(self) -> float:
        """How likely it is that d is at most τ; see above.

        >>> wide = CrossedInterval(0.005, -0.028, 0.038, 0.9, 1, 100, 99.0, 4000)  # s = 0.02
        >>> [round(Gap(wide, tolerance).confidence, 2) for tolerance in (0.01, 0.005, 0.001)]
        [0.6, 0.5, 0.42]
        """
        d = self.difference
        s = (d.high - d.low) / (2 * float(ndtri((1 + d.level) / 2)))
        if s <= 0:
            return float(d.mean <= self.tolerance)
        return float(ndtr((self.tolerance - d.mean) / s))

    def suffices(self, undecided: Undecided) -> bool:
        """Whether the rank counts as good as the reference."""
        if self.state == "open" and undecided == "estimate":
            return self.difference.mean <= self.tolerance
        return self.state == "equivalent"


@dataclass(frozen=True)
class Judge:
    """The rule by which two measured ranks are compared.

    Attributes:
        tolerance: τ, and the seed noise of the short runs.
        level: certainty of each bound.
        undecided: what decides where the rows do not.
        unsettled: the share of the seed noise that is left after so many steps. Where a run happens
            to be depends on its seed the more the higher its learning rate is.
    """

    tolerance: LossTolerance
    level: float = 0.95
    undecided: Undecided = "estimate"
    unsettled: Callable[[int], float] = lambda step: 0.0

    def compare(self, rank: RowLosses, reference: RowLosses, step: int) -> Gap:
        """d, with bounds for both chances: which rows there were, and where the runs happened to be.

        Args:
            rank, reference: losses of the same rows.
            step: that both runs were measured after. Each is off by the unsettled share of the noise,
                as a standard deviation over seeds; two are off by √2 times as much.
        """
        d = paired_difference(rank, reference, self.level)
        off = math.sqrt(2) * (self.tolerance.noise * self.unsettled(step)) * reference.loss
        return Gap(widened(d, off), self.tolerance.nats(reference.loss))


def paired_difference(rank: RowLosses, reference: RowLosses, level: float) -> CrossedInterval:
    """d by the rows alone, in nats per token: paired, so that the difficulty of a row cancels.

    Args:
        rank, reference: losses of the same rows.
        level: certainty of each bound.
    """
    tokens_N = np.array(rank.tokens)
    values_N = (np.array(rank.nats) - np.array(reference.nats)) / tokens_N
    return crossed_mean(values_N[None], tokens_N, generator=generator(), level=2 * level - 1)


def widened(d: CrossedInterval, deviation: float) -> CrossedInterval:
    """d whose bounds hold for another source of chance besides the rows, of this standard deviation."""
    reach = float(ndtri((1 + d.level) / 2)) * deviation
    low, high = (
        d.mean - math.hypot(d.mean - d.low, reach),
        d.mean + math.hypot(d.high - d.mean, reach),
    )
    return replace(d, low=low, high=high)


def generator() -> np.random.Generator:
    """Fresh for every interval, so that none depends on which others were asked for."""
    return np.random.default_rng(0)


@dataclass(frozen=True)
class Choice:
    """The answer.

    Attributes:
        rank: the smallest that is equivalent.
        kind: whether all ranks are equivalent, some are too small, or even the highest is.
        gaps: of every rank that was compared; the reference has none.
        reference: the rank that the others were held against.
        confidence: how likely d of the chosen rank is to be at most τ; 1 for the reference, which
            is the best there is.
        tolerance: τ in nats per token.
        highest: the highest candidate.
        skipped: ranks below the chosen one that were not compared, though a smaller one was.
    """

    rank: int
    kind: Kind
    gaps: Mapping[int, Gap]
    reference: int
    confidence: float
    tolerance: float
    highest: int
    skipped: tuple[int, ...]

    def below(self, *states: State) -> list[int]:
        """Ranks below the chosen one that were compared and are in one of these states."""
        return [r for r, gap in self.gaps.items() if r < self.rank and gap.state in states]


def choose(
    gaps: Mapping[int, Gap],
    reference: int,
    tolerance: float,
    ranks: Sequence[int],
    undecided: Undecided = "estimate",
) -> Choice:
    """The smallest rank that is equivalent to the reference.

    Args:
        gaps: of ranks that were compared, each against the reference as it was then.
        reference: the rank that they were held against.
        tolerance: τ in nats per token where the answer was compared.
        ranks: all candidates, rising.
        undecided: what decides where rows leave a rank open.
    """
    rank = min([*(r for r, gap in gaps.items() if gap.suffices(undecided)), reference])
    below = {r: gap.state for r, gap in gaps.items() if r < rank}
    kind: Kind = "needed"
    if rank == ranks[0]:
        kind = "indistinguishable"
    elif rank == ranks[-1] and below and max(below) == ranks[-2] and "open" not in below.values():
        kind = "unsaturated"
    return Choice(
        rank=rank,
        kind=kind,
        gaps=gaps,
        reference=reference,
        confidence=gaps[rank].confidence if rank in gaps else 1.0,
        tolerance=tolerance,
        highest=ranks[-1],
        skipped=tuple(r for r in ranks if max(below, default=rank) < r < rank),
    )
