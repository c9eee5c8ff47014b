"""How a rank is searched for: one frozen description, and the run's options beside it."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from lorakit.config import RunConfig
from lorakit.errors import ConfigError, did_you_mean
from lorakit.experiments.settings import RUN_OPTIONS, Form, Settings
from lorakit.lora.variant import Capability, Variant, require_capability

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
        default=32,
        metadata={"help": "The highest candidate rank. The candidates are 1, 2, 4, … up to it."},
    )
    tolerance: str = field(
        default="auto",
        metadata={
            "help": "The margin within which a smaller rank counts as equal to the best one: a share of "
            "the held-out loss such as 0.5%. auto: 1%; the search then goes on by the difference that "
            "another seed makes, which is estimated first."
        },
    )
    method: MethodName = field(
        default="bracket",
        metadata={
            "help": "How ranks are searched: bracket (train the lowest and the highest concurrently, "
            "then bisect between them), heal (train the highest, truncate it to each rank and train "
            "a little more), nested (train all ranks as prefixes of the highest in one run), halving "
            "(plain successive halving)."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "Choose the rank by a score of generated answers, such as field_accuracy, "
            "instead of the held-out loss."
        },
    )
    rates: int = field(
        default=4,
        metadata={
            "help": "Number of learning rates that short runs try first, around the rate that "
            "`lorakit train` would take. 1 takes that rate, and --learning-rate a given one, without "
            "trying others."
        },
    )
    rate_factor: float = field(
        default=round(math.sqrt(10), 4),
        metadata={"help": "Each learning rate that is tried is this many times the one below it."},
    )
    probe_share: float = field(
        default=0.05,
        metadata={
            "help": "Length of a short run, for the learning rate and for the seed noise, as a "
            "share of a whole run."
        },
    )
    noise_seeds: int = field(
        default=3,
        metadata={
            "help": "Number of seeds of the short runs that the seed noise is estimated from. The "
            "same number of seeds decides between two learning rates that one run each cannot "
            "separate."
        },
    )
    rungs: tuple[float, ...] = field(
        default=(0.4, 0.7),
        metadata={
            "help": "Shares of a run after which ranks are compared. A comparison that is still "
            "undecided after the last one is repeated at the end of the runs where --budget allows "
            "it, and is otherwise settled by --undecided."
        },
    )
    budget: float | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "What bracket may cost at most, in runs at the highest rank, short runs and "
            "measuring included. The search stops there, and takes the smallest rank that it found to "
            "be enough. A budget that the lowest and the highest rank alone would exceed is refused. "
            "auto: 2.5, or what these two need where that is more."
        },
    )
    average_share: float = field(
        default=0.15,
        metadata={
            "help": "Before its end, a run is measured with the mean of A and of B over the latest "
            "steps, as many as this share of the run. At a high learning rate the parameters vary "
            "from step to step, which would hide the difference between ranks."
        },
    )
    decide_at: float = field(
        default=0.4,
        metadata={
            "help": "The share of a run from which on a rank that is enough ends the search. 1 is the "
            "safest and costs most."
        },
    )
    heal_share: float = field(
        default=0.2,
        metadata={
            "help": "With heal and nested: how long the truncated adapter is trained further, as a "
            "share of a run."
        },
    )
    level: float = field(
        default=0.95,
        metadata={
            "help": "Level of the one-sided bounds by which the search goes on. What is said of a rank has intervals of 95 % of its own."
        },
    )
    undecided: Undecided = field(
        default="estimate",
        metadata={
            "help": "What the search does with a rank of which the held-out rows do not decide "
            "whether it is enough: estimate (take it if its estimate is within the tolerance) or larger "
            "(take the next larger rank). What is said of it is the same."
        },
    )
    allow_short: bool = field(
        default=False,
        metadata={
            "help": "Search although the runs are too short or the held-out rows too few for it. Then "
            "nothing is said of any rank."
        },
    )
    per_layer: bool = field(
        default=False,
        metadata={
            "help": "Also train an adapter whose rank differs from layer to layer, with as many "
            "parameters as the recommended rank. It is recommended only where it is better."
        },
    )
    verify: bool = field(
        default=False,
        metadata={
            "help": "Afterwards train the recommended rank and its two neighbours again, with "
            "another seed."
        },
    )
    exhaustive: bool = field(
        default=False,
        metadata={
            "help": "Afterwards train the whole grid (ranks x learning rates x seeds) and report the "
            "regret: how much worse the recommendation is than the best point of the grid."
        },
    )
    grid_rates: int = field(
        default=2,
        metadata={"help": "With exhaustive: number of learning rates, the best of the short runs."},
    )
    grid_seeds: int = field(default=2, metadata={"help": "With exhaustive: number of seeds."})
    workers: int = field(
        default=1,
        metadata={
            "help": "With exhaustive: number of trials that run concurrently; they share the cores."
        },
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
        if self.budget != "auto" and not (isinstance(self.budget, float | int) and self.budget > 0):
            raise ConfigError(f"budget must be 'auto' or above 0; it is {self.budget!r}")
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
        match = _SHARE.fullmatch(self.tolerance)
        value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
        if not 0 < value < 1:
            raise ConfigError(
                f"tolerance is {self.tolerance!r}; give 'auto' or a share of the loss, such as "
                "0.5% or 0.005"
            )
        return value


RankSettings = Settings[RankSpec]
# A search has one length and may be given the learning rate; a comparison decides both.
FORM = Form(
    RankSpec,
    section="search",
    options=(*RUN_OPTIONS, "learning_rate", "epochs", "max_steps"),
    defaults={"out": "runs/rank", "samples": 64},
    decided_by="the search",
)


def check_variant(variant: Variant) -> None:
    """See that a search can train a variant's ranks side by side, and judge them by their singular values.

    Raises:
        ConfigError: it cannot.
    """
    for capability in (Capability.JOBS, Capability.SHRINK):
        require_capability(
            *(variant, capability, "lorakit rank"),
            "search with plain LoRA, or train the ranks one by one with `lorakit train`",
            error=ConfigError,
        )


def check_start(config: RunConfig) -> None:
    """Refuse initialisations of which a rank says something else than it does of plain LoRA.

    Raises:
        ConfigError: pairs would hold twice their rank, or have ranks by the rows.
    """
    how = config.lora.initialisation
    if how.splits or how.rows:
        raise ConfigError(
            f"init {how.name}: a search compares plain pairs of a rank each, and these "
            + ("hold two of it" if how.splits else "have ranks by the rows")
            + "; search with --init kaiming, then train at the rank that it finds"
        )
