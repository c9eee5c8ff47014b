"""What is compared and by which protocol: one frozen description."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from lorakit.errors import ConfigError

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
        default=(8,), metadata={"help": "Ranks of the LoRA arms, such as 8,32; one arm each."}
    )
    seeds: int = field(
        default=3,
        metadata={
            "help": "Times that each arm is trained; every seed gives all arms the same rows."
        },
    )
    budget: str = field(
        default="1 epoch",
        metadata={
            "help": "How long each arm trains: '200 steps', '300k tokens', '2 epochs', or "
            "'10 minutes' (each as many steps as it can do in that time)."
        },
    )
    rates: int = field(
        default=5,
        metadata={
            "help": "Learning rates that each arm tries in its probe, around the rule of "
            "`lorakit train`; 1 takes the rule's without a probe."
        },
    )
    rate_factor: float = field(
        default=round(math.sqrt(10), 4), metadata={"help": "From one rate of the grid to the next."}
    )
    probe_share: float = field(
        default=0.25,
        metadata={
            "help": "Steps of the probe's last round as a share of a run's; each round before it "
            "has half as many, and keeps the better half of the rates."
        },
    )
    evaluations: int = field(
        default=6,
        metadata={
            "help": "Measurements of learning and forgetting over a run, the last at its end."
        },
    )
    general_data: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Rows that the task is not about, on which forgetting is measured; the "
            "default is 40 general prompts with the base's own answers."
        },
    )
    margin: float = field(
        default=0.05,
        metadata={
            "help": "Share of full fine-tuning's gain over the base that LoRA's savings are worth: "
            "the verdict calls a smaller difference close."
        },
    )
    control: bool = field(
        default=False,
        metadata={
            "help": "Train the first rank once more from another start: what chance alone does."
        },
    )
    workers: int = field(
        default=1,
        metadata={"help": "Trials at once. More than 1 share the cores, and times show it."},
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
        if not 0 <= self.margin < 1:
            raise ConfigError(f"margin must lie in [0, 1); it is {self.margin}")
        self.parsed_budget()

    def parsed_budget(self) -> Budget:
        """The budget as amount and unit."""
        found = _BUDGET.fullmatch(self.budget)
        unit = found[3] if found else ""
        for known in get_args(Unit):
            if found and unit in (known, known.removesuffix("s")):
                amount = float(found[1]) * _TIMES[found[2]]
                if amount > 0:
                    return Budget(amount, known)
        raise ConfigError(
            f"budget is {self.budget!r}; give a number and a unit: '200 steps', '300k tokens', "
            "'2 epochs' or '10 minutes'"
        )
