"""Learning rates: by rule, and by a probe of a geometric grid, halved round by round.

Round by round every rate that is left is trained from the start, by the whole schedule of its own
length, and judged by its loss on rows that are not trained on. The better half goes on to twice the
steps, until two are left; the better of these is the rate. A rate whose loss stopped being finite
is out. Arms that are compared have as many rates and as many steps.

Successive halving: Jamieson and Talwalkar, arXiv 1502.07943.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.errors import DivergedError
from lorakit.training import auto_learning_rate


@dataclass(frozen=True)
class RateRule:
    """The rule of `lorakit train` for one base: a first learning rate for runs of any length.

    Attributes:
        hidden_size: width of the base.
        family: its model type.
    """

    hidden_size: int
    family: str

    def rate(self, steps: int, *, full: bool = False) -> float:
        """The rate of a run of so many steps; `full` trains every parameter of the base."""
        return auto_learning_rate(self.hidden_size, steps, family=self.family, full=full)


@dataclass(frozen=True)
class ProbePoint:
    """A rate as a round of a probe measured it.

    Attributes:
        round: from 1.
        steps: of each run of the round.
        rate: the learning rate.
        loss: nats per token; None where a run diverged.
    """

    round: int
    steps: int
    rate: float
    loss: float | None


@dataclass(frozen=True)
class Round:
    """One round: how many rates are tried, for how many steps each."""

    rates: int
    steps: int


def grid(centre: float, count: int, factor: float) -> tuple[float, ...]:
    """`count` rates around the centre, each `factor` times the one before, rising.

    >>> grid(1e-3, 3, 10.0)
    (0.0001, 0.001, 0.01)
    """
    first = -(count - 1) / 2
    return tuple(float(f"{centre * factor ** (first + i):.3g}") for i in range(count))


def rounds(rates: int, share: float, steps: int) -> tuple[Round, ...]:
    """The rounds of a probe for a run of so many steps; none where there is one rate.

    Args:
        rates: in the first round.
        share: of the run's steps, in the last round.
        steps: of the run.

    >>> rounds(5, 0.25, 80)
    (Round(rates=5, steps=10), Round(rates=2, steps=20))
    """
    if rates == 1:
        return ()
    counts = [rates]
    while counts[-1] > 2:
        counts.append(max(2, counts[-1] // 2))
    last = max(1, math.ceil(share * steps))
    return tuple(
        Round(count, max(1, math.ceil(last / 2 ** (len(counts) - 1 - i))))
        for i, count in enumerate(counts)
    )


def survivors(losses: Mapping[float, float | None], keep: int) -> tuple[float, ...]:
    """The `keep` rates of lowest loss, rising; None is a rate that diverged.

    Of equal losses the lower rate is the better one.

    Raises:
        DivergedError: every rate diverged.
    """
    finite = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not finite:
        raise DivergedError(
            f"every learning rate of the probe diverged ({', '.join(map(str, sorted(losses)))}): "
            "look at the rows, or try --dtype float32"
        )
    best = sorted(finite, key=lambda rate: (finite[rate], rate))[:keep]
    return tuple(sorted(best))


def at_edge(rate: float, tried: Sequence[float]) -> bool:
    """Whether the chosen rate is the lowest or the highest of the grid."""
    return len(tried) > 1 and rate in (min(tried), max(tried))


class RateProbe:
    """The probe of one method, from its first rates to the one that is left.

    Args:
        centre: the rate by rule.
        plan: the rounds; none for taking the rule's rate.
        factor: from one rate of the grid to the next.

    Attributes:
        rates: that are left, rising.
        points: all that was measured.
    """

    def __init__(self, centre: float, plan: Sequence[Round], factor: float) -> None:
        self._plan = plan
        self.rates = grid(centre, plan[0].rates, factor) if plan else (centre,)
        self.points: list[ProbePoint] = []
        self._done = 0

    @property
    def round(self) -> Round | None:
        """The round that is next; None after the last."""
        return self._plan[self._done] if self._done < len(self._plan) else None

    @property
    def rate(self) -> float:
        """The best rate so far."""
        return self.rates[0]

    def note(self, losses: Mapping[float, float | None]) -> None:
        """Take the losses of a round, by rate, and drop the worse half of the rates.

        Raises:
            DivergedError: every rate diverged.
        """
        steps = self._plan[self._done].steps
        self._done += 1
        self.points += [ProbePoint(self._done, steps, rate, losses[rate]) for rate in self.rates]
        self.rates = survivors(losses, self.round.rates if self.round else 1)
