"""How a rank is searched for: one frozen description."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from lorakit.errors import ConfigError, did_you_mean

# As in choose.py, which is too heavy for --help.
Undecided = Literal["estimate", "larger"]
MethodName = Literal["bracket", "heal", "nested", "halving"]
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class RankSpec:
    """The search's settings; `docs/rank.md` says why each is as it is.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_rank: int = field(
        default=32, metadata={"help": "Highest rank; 1, 2, 4, … up to it are the candidates."}
    )
    tolerance: str = field(
        default="auto",
        metadata={
            "help": "How far above the best held-out loss a smaller rank may lie: a share of it "
            "such as 0.5%, or 'auto', the seed noise, estimated."
        },
    )
    method: MethodName = field(
        default="bracket",
        metadata={
            "help": "How ranks are searched: bracket (lowest and highest side by side, then "
            "between them), heal (the highest, cut and healed), nested (all prefixes in one run), "
            "halving (plain successive halving)."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={"help": "Choose by a score of generated answers, such as field_accuracy."},
    )
    rates: int = field(
        default=4,
        metadata={
            "help": "Learning rates tried first, around the rule of `lorakit train`; 1 takes the "
            "rule's, and --learning-rate a given one."
        },
    )
    rate_factor: float = field(
        default=round(math.sqrt(10), 4), metadata={"help": "From one rate of the grid to the next."}
    )
    probe_share: float = field(
        default=0.05,
        metadata={
            "help": "Steps of a short run, for the rate and for the seed noise, as a share of a "
            "whole run's."
        },
    )
    noise_seeds: int = field(
        default=3,
        metadata={
            "help": "Seeds of the short runs that the seed noise is estimated from, and that two "
            "rates are compared with which one run each does not tell apart."
        },
    )
    rungs: tuple[float, ...] = field(
        default=(0.4, 0.7),
        metadata={
            "help": "Shares of a run after which ranks are compared; what the last leaves open is "
            "compared at the end if --budget reaches so far, and settled as --undecided says if not."
        },
    )
    budget: float = field(
        default=2.5,
        metadata={
            "help": "What bracket may spend, in runs at the highest rank, the probe and measuring "
            "included. The lowest and the highest are compared up to the last of --rungs in any case; "
            "where one more rank would take more, the smallest known to suffice is taken."
        },
    )
    average_share: float = field(
        default=0.15,
        metadata={
            "help": "Before its end a run is measured with the mean of its A and B over so much of "
            "it: at a high rate the last step's wander about, which hides what ranks differ by."
        },
    )
    decide_at: float = field(
        default=0.4,
        metadata={
            "help": "Share of a run from which on a rank that is within the tolerance stops the "
            "search; 1 is safest and dearest."
        },
    )
    heal_share: float = field(
        default=0.2,
        metadata={"help": "Steps after a cut, or for a chosen prefix alone, as a share of a run."},
    )
    level: float = field(
        default=0.95, metadata={"help": "Certainty of the upper bounds that the choice rests on."}
    )
    undecided: Undecided = field(
        default="estimate",
        metadata={
            "help": "Where held-out rows leave open whether a rank is within the tolerance: "
            "'estimate' takes it if it is likelier within than not and says how sure that is, "
            "'larger' takes the next rank."
        },
    )
    per_layer: bool = field(
        default=False,
        metadata={
            "help": "Also train ranks that differ by layer, with as many parameters as the "
            "recommended rank; recommended only where that wins."
        },
    )
    verify: bool = field(
        default=False,
        metadata={
            "help": "Then train the recommended rank and its neighbours anew, with another seed."
        },
    )
    exhaustive: bool = field(
        default=False,
        metadata={"help": "Then train the whole grid, ranks x rates x seeds, for the regret."},
    )
    grid_rates: int = field(default=2, metadata={"help": "Rates of the grid, best of the probe."})
    grid_seeds: int = field(default=2, metadata={"help": "Seeds of the grid."})
    workers: int = field(
        default=1, metadata={"help": "Trials of the grid at once; they share the cores."}
    )

    def __post_init__(self) -> None:
        counts = ("max_rank", "rates", "grid_rates", "grid_seeds", "workers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; it is {getattr(self, name)}")
        if self.max_rank < 2:
            raise ConfigError("max_rank is 1: there is nothing to choose between")
        if self.noise_seeds < 2:
            raise ConfigError(f"noise_seeds must be at least 2; it is {self.noise_seeds}")
        if not self.budget > 0:
            raise ConfigError(f"budget must be above 0; it is {self.budget}")
        if not self.rate_factor > 1:
            raise ConfigError(f"rate_factor must be above 1; it is {self.rate_factor}")
        for name in ("probe_share", "decide_at", "heal_share", "average_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in (0, 1]; it is {getattr(self, name)}")
        if not 0.5 < self.level < 1:
            raise ConfigError(f"level must lie in (0.5, 1); it is {self.level}")
        rising = all(a < b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        if not self.rungs or not rising or self.rungs[0] <= 0 or self.rungs[-1] > 1:
            raise ConfigError(f"rungs must rise from above 0 to at most 1; they are {self.rungs}")
        if self.decide_at > self.rungs[-1]:
            raise ConfigError(
                f"decide_at is {self.decide_at}, after the last of rungs, {self.rungs[-1]}"
            )
        if self.metric is not None:
            from lorakit.evaluation.metrics import METRICS  # heavy, and not for --help

            if self.metric not in METRICS:
                known = did_you_mean(self.metric, METRICS)
                raise ConfigError(f"metric is {self.metric!r}; {known}")
        self.share()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The candidates, rising.

        >>> RankSpec(max_rank=12).ranks
        (1, 2, 4, 8, 12)
        """
        powers = [2**i for i in range(self.max_rank.bit_length()) if 2**i < self.max_rank]
        return (*powers, self.max_rank)

    def share(self) -> float | None:
        """The tolerance as a share of the loss; None for 'auto'.

        >>> RankSpec(tolerance="0.5%").share()
        0.005
        """
        if self.tolerance == "auto":
            return None
        found = _SHARE.fullmatch(self.tolerance)
        value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
        if not 0 < value < 1:
            raise ConfigError(
                f"tolerance is {self.tolerance!r}; give 'auto' or a share of the loss, such as "
                "0.5% or 0.005"
            )
        return value
