"""What is compared and by which protocol: one frozen description, and the run's options beside it."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from lorakit.errors import ConfigError
from lorakit.experiments.settings import RUN_OPTIONS, Form, Settings

Unit = Literal["steps", "tokens", "minutes", "epochs"]
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kM]?)\s*([a-z]+)\s*")
_TIMES = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class Budget:
    """How long each arm trains: so many of a unit."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


@dataclass(frozen=True)
class CompareSpec:
    """The protocol's settings; `docs/compare.md` says why each is as it is.

    Raises:
        ConfigError: a value is out of its range.
    """

    ranks: tuple[int, ...] = field(
        default=(8,),
        metadata={"help": "Ranks to compare with full fine-tuning, such as 8,32; one arm each."},
    )
    seeds: int = field(
        default=3,
        metadata={
            "help": "How often each arm is trained, each time with another seed. For one seed all "
            "arms get the same rows in the same order."
        },
    )
    budget: str = field(
        default="1 epoch",
        metadata={
            "help": "How long each arm trains: '200 steps', '300k tokens', '2 epochs', or "
            "'10 minutes' (each arm takes as many steps as it can in that time)."
        },
    )
    rates: int = field(
        default=5,
        metadata={
            "help": "Number of learning rates that short runs of each arm try, around the rate that "
            "`lorakit train` would take. 1 takes that rate without trying others."
        },
    )
    rate_factor: float = field(
        default=round(math.sqrt(10), 4),
        metadata={"help": "Each learning rate that is tried is this many times the one below it."},
    )
    probe_share: float = field(
        default=0.25,
        metadata={
            "help": "Length of the last round of short runs, as a share of a whole run. Each round "
            "before it is half as long; the better half of the rates goes on to the next round."
        },
    )
    evaluations: int = field(
        default=6,
        metadata={
            "help": "How often learning and forgetting are measured in a run, the last time at its "
            "end."
        },
    )
    general_data: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Rows that do not belong to the task, on which forgetting is measured. "
            "Default: 40 general prompts with the base model's own completions."
        },
    )
    margin: float = field(
        default=0.05,
        metadata={
            "help": "The margin of the verdict, as a share of what full fine-tuning gains over the "
            "base. Two arms whose losses certainly differ by less are called equal: LoRA's savings "
            "are taken to be worth so much."
        },
    )
    score_margin: float = field(
        default=0.05,
        metadata={
            "help": "The margin within which two scores of answers, which lie between 0 and 1, count as "
            "equal."
        },
    )
    forgetting_margin: float = field(
        default=0.1,
        metadata={
            "help": "The margin within which two arms count as forgetting as much, as a share of "
            "what the reference forgets."
        },
    )
    cost_margin: float = field(
        default=0.05,
        metadata={"help": "The margin within which memory and time count as equal, as a share."},
    )
    control: bool = field(
        default=False,
        metadata={
            "help": "Train the first rank a second time from another initialisation, which shows "
            "how large a difference chance alone makes."
        },
    )
    workers: int = field(
        default=1,
        metadata={
            "help": "Number of trials that run concurrently. With more than 1 they share the cores, "
            "and the measured times are longer."
        },
    )

    def __post_init__(self) -> None:
        if not self.ranks or any(rank < 1 for rank in self.ranks):
            raise ConfigError(f"ranks must be whole numbers of at least 1; they are {self.ranks}")
        if len(set(self.ranks)) < len(self.ranks):
            raise ConfigError(f"ranks names a rank twice: {self.ranks}")
        for name in ("seeds", "rates", "evaluations", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; it is {getattr(self, name)}")
        if not self.rate_factor > 1:
            raise ConfigError(f"rate_factor must be above 1; it is {self.rate_factor}")
        if not 0 < self.probe_share <= 1:
            raise ConfigError(f"probe_share must lie in (0, 1]; it is {self.probe_share}")
        for name in ("margin", "score_margin", "forgetting_margin", "cost_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1); it is {getattr(self, name)}")
        self.parsed_budget()

    @property
    def margins(self) -> dict[str, float]:
        """All margins by what they are of, as shares."""
        return {
            "loss": self.margin,
            "scores": self.score_margin,
            "forgetting": self.forgetting_margin,
            "costs": self.cost_margin,
        }

    def parsed_budget(self) -> Budget:
        """The budget as amount and unit."""
        match = _BUDGET.fullmatch(self.budget)
        unit = match[3] if match else ""
        for known in get_args(Unit):
            if match and unit in (known, known.removesuffix("s")):
                amount = float(match[1]) * _TIMES[match[2]]
                if amount > 0:
                    return Budget(amount, known)
        raise ConfigError(
            f"budget is {self.budget!r}; give a number and a unit: '200 steps', '300k tokens', "
            "'2 epochs' or '10 minutes'"
        )


CompareSettings = Settings[CompareSpec]
FORM = Form(
    CompareSpec,
    section="compare",
    options=RUN_OPTIONS,
    defaults={"out": "runs/compare", "samples": 64},
    decided_by="the protocol",
)
