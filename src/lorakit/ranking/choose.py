"""From held-out losses of several ranks to an answer. Pure: nothing here trains or measures.

Two questions are kept apart. **What the search does next** has to be decided whatever is known. With
d_r = loss of rank r - loss of the reference, row by row on the same rows, U_r its upper bound and L_r its
lower one (one-sided, over rows and the unsettled part of the seed noise), and τ the tolerance:

    enough   U_r <= τ   the search takes it, and looks for a smaller one
    short    L_r > τ    the search looks for a larger one
    open     else       it is looked at again; in the end the estimate d_r <= τ decides (`undecided`)

The answer is the smallest rank that suffices by this rule.

**What may be said** of a rank is a `Verdict` (lorakit.evaluation.verdict). Each rank was trained with one
seed, and another seed would have given another difference. Its variance is twice that of the losses of
short runs that differ in their seed alone, σ² with k - 1 degrees of freedom of k runs: in nats per token
as the short runs had it, or as the same share of the reference's loss, whichever is more. The bounds join
both variances as `crossed` says, at a level at which all looks at a pair of runs hold together. `equal`
is said within ±margin, the tolerance that the user gave, or a hundredth of the loss.

How likely the answer is enough, where d_r is known: with s² both variances together and ν Satterthwaite's
(1946) degrees of freedom, d_r is at most τ with probability T_ν((τ - d̂_r) / s) where nothing was known of
it before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtr

from lorakit.evaluation import crossed, verdict
from lorakit.evaluation.crossed import CrossedInterval, crossed_mean
from lorakit.evaluation.verdict import Verdict, Word
from lorakit.experiments.measuring import RowLosses
from lorakit.ranking.spec import Undecided

State = Literal["enough", "short", "open"]
Kind = Literal["lowest", "needed", "unsaturated"]

# The seed noise is estimated from few short runs, which differ more than whole ones: outside of these
# shares of the loss the estimate says more about their luck than about the task, and more than a
# hundredth of the loss is not to be given away unasked.
LEAST_SHARE, MOST_SHARE = 0.001, 0.01
NOT_JUDGED = Verdict(verdict.UNKNOWN, None, None)


@dataclass(frozen=True)
class LossTolerance:
    """τ as a share of the loss, and where it comes from.

    Attributes:
        share: of the best loss.
        noise: the seed noise that was estimated, as a share.
        runs: short runs that it was estimated from.
        from_user: whether the user gave the share; else it is the noise, kept within a range.
        deviation: the noise as it was measured, in nats per token.
    """

    share: float
    noise: float
    runs: int
    from_user: bool
    deviation: float = 0.0

    @property
    def margin(self) -> float:
        """Within which two ranks count as equal, as a share of the loss: named before the search."""
        return self.share if self.from_user else MOST_SHARE

    def seed_deviation(self, loss: float) -> float:
        """What another seed makes of a loss like this one, as a standard deviation, nats per token."""
        return max(self.deviation, self.noise * loss)

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
    deviation, runs = stdev(losses), len(losses)
    noise = float(f"{deviation / (sum(losses) / runs):.4g}")
    if share is not None:
        return LossTolerance(share, noise, runs, from_user=True, deviation=deviation)
    kept = min(max(noise, LEAST_SHARE), MOST_SHARE)
    return LossTolerance(kept, noise, runs, from_user=False, deviation=deviation)


@dataclass(frozen=True)
class Gap:
    """d of a rank that was compared with the reference, and τ beside the reference's loss.

    Attributes:
        difference: by which the search goes on; its ends are one-sided bounds.
        tolerance: τ, both in nats per token.
        verdict: what may be said of it.
        confidence: how likely it is that d is at most τ, see above; None where that is not known.
    """

    difference: CrossedInterval
    tolerance: float
    verdict: Verdict = NOT_JUDGED
    confidence: float | None = None

    @property
    def state(self) -> State:
        """Where d stands to τ, for the search."""
        if self.difference.high <= self.tolerance:
            return "enough"
        return "short" if self.difference.low > self.tolerance else "open"

    def suffices(self, undecided: Undecided) -> bool:
        """Whether the search takes the rank for enough."""
        if self.state == "open" and undecided == "estimate":
            return self.difference.mean <= self.tolerance
        return self.state == "enough"


@dataclass(frozen=True)
class Judge:
    """The rule by which two measured ranks are compared.

    Attributes:
        tolerance: τ, and the seed noise of the short runs.
        level: certainty of each bound.
        undecided: what decides where the rows do not.
        unsettled: the share of the seed noise that is left after so many steps. Where a run happens
            to be depends on its seed the more the higher its learning rate is.
        looks: how often a pair of runs may be compared; all its intervals hold together.
        refused: why nothing may be said of this search, as what would do; empty where words may be.
    """

    tolerance: LossTolerance
    level: float = 0.95
    undecided: Undecided = "estimate"
    unsettled: Callable[[int], float] = lambda step: 0.0
    looks: int = 1
    refused: tuple[str, ...] = ()

    def compare(self, rank: RowLosses, reference: RowLosses, step: int) -> Gap:
        """d, with bounds for both chances: which rows there were, and where the runs happened to be.

        Args:
            rank, reference: losses of the same rows.
            step: that both runs were measured after. Each is off by the unsettled share of the noise,
                as a standard deviation over seeds; two are off by √2 times as much.
        """
        d = paired_difference(rank, reference, self.level)
        off = math.sqrt(2) * (self.tolerance.noise * self.unsettled(step)) * reference.loss
        told, likely = self._told(rank, reference)
        return Gap(widened(d, off), self.tolerance.nats(reference.loss), told, likely)

    def _told(self, rank: RowLosses, reference: RowLosses) -> tuple[Verdict, float | None]:
        """What may be said, and how likely d is to be at most τ."""
        rows, loss = len(rank.nats), reference.loss
        margin = self.tolerance.margin * loss
        d = None
        if rows >= verdict.LEAST_ROWS:
            level = verdict.share_of_level(verdict.LEVEL, self.looks)
            variance, degrees = (
                2 * self.tolerance.seed_deviation(loss) ** 2,
                self.tolerance.runs - 1,
            )
            over_rows = paired_interval(rank, reference, level)
            d = crossed.with_seed_noise(over_rows, variance, degrees)
        told = verdict.judge(
            d,
            margin,
            least_seeds=1,
            rows_measured=rows,
            refused=self.refused,
            more_seeds=f"more short runs for the seed noise (--noise-seeds, now {self.tolerance.runs})",
            more_rows="more held-out rows (--eval-data or a larger --eval-share)",
        )
        if d is None or self.refused:
            return told, None
        error = crossed.standard_error(over_rows) ** 2
        total = error + variance
        tau = self.tolerance.nats(loss)
        if total <= 0:
            return told, float(d.mean <= tau)
        nu = total**2 / (error**2 / (rows - 1) + variance**2 / degrees)
        return told, float(stdtr(nu, (tau - d.mean) / math.sqrt(total)))


def paired_difference(rank: RowLosses, reference: RowLosses, level: float) -> CrossedInterval:
    """d by the rows alone, in nats per token: paired, so that the difficulty of a row cancels.

    Args:
        rank, reference: losses of the same rows.
        level: certainty of each bound.
    """
    return paired_interval(rank, reference, 2 * level - 1)


def paired_interval(rank: RowLosses, reference: RowLosses, level: float) -> CrossedInterval:
    """The same, by the level of the whole interval."""
    tokens_N = np.array(rank.tokens)
    values_N = (np.array(rank.nats) - np.array(reference.nats)) / tokens_N
    return crossed_mean(values_N[None], tokens_N, generator=generator(), level=level)


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
        rank: the smallest that suffices by the rule of the search.
        kind: the lowest candidate; a larger one that is needed; or the highest, and the one below it is
            said to be worse.
        gaps: of every rank that was compared; the reference has none.
        reference: the rank that the others were held against.
        confidence: how likely d of the chosen rank is to be at most τ; None where it is the
            reference, which is held against nothing, and where no word may be said.
        tolerance: τ in nats per token.
        highest: the highest candidate.
        skipped: ranks below the chosen one that were not compared, though a smaller one was.
    """

    rank: int
    kind: Kind
    gaps: Mapping[int, Gap]
    reference: int
    confidence: float | None
    tolerance: float
    highest: int
    skipped: tuple[int, ...]

    def below(self, *words: Word) -> list[int]:
        """Ranks below the chosen one that were compared, and of which one of these words is said."""
        return [r for r, gap in self.gaps.items() if r < self.rank and gap.verdict.word in words]


def choose(
    gaps: Mapping[int, Gap],
    reference: int,
    tolerance: float,
    ranks: Sequence[int],
    undecided: Undecided = "estimate",
) -> Choice:
    """The smallest rank that suffices beside the reference.

    Args:
        gaps: of ranks that were compared, each against the reference as it was then.
        reference: the rank that they were held against.
        tolerance: τ in nats per token where the answer was compared.
        ranks: all candidates, rising.
        undecided: what decides where rows leave a rank open.
    """
    rank = min([*(r for r, gap in gaps.items() if gap.suffices(undecided)), reference])
    below = {r: gap.verdict.word for r, gap in gaps.items() if r < rank}
    kind: Kind = "needed"
    if rank == ranks[0]:
        kind = "lowest"
    elif rank == ranks[-1] and below.get(ranks[-2]) == "worse":
        kind = "unsaturated"
    return Choice(
        rank=rank,
        kind=kind,
        gaps=gaps,
        reference=reference,
        confidence=gaps[rank].confidence if rank in gaps else None,
        tolerance=tolerance,
        highest=ranks[-1],
        skipped=tuple(r for r in ranks if max(below, default=rank) < r < rank),
    )
