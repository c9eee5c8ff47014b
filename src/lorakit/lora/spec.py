"""What to adapt and how: one frozen description, small, strict at its boundary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorakit.errors import ConfigError
from lorakit.lora.invocation import Invocation, as_invocation
from lorakit.lora.variant import Capability, Variant, require_capability
from lorakit.lora.variants import variant_of

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSpec:
    """Which modules get a pair (A, B), of which rank, scaled by what.

    The adapted layer computes ``W x + s · B (A x)`` with ``s = alpha / rank``, or
    ``alpha / sqrt(rank)`` with `rslora` (arXiv 2312.03732).

    A pattern in `targets` and `exclude` is one of: ``all-linear`` (every linear layer of the
    blocks, not the output head and no router); a name such as ``q_proj`` or ``mlp.up_proj``, which matches
    whole path components at the end of a module's path; a glob such as ``*.layers.3.*``; or
    ``re:`` and a regular expression for the full path. Keys of `rank_pattern` and
    `alpha_pattern` are peft's: the regular expression ``(.*\\.)?(key)$`` on the path, first hit
    wins.

    Raises:
        ConfigError: a value is out of its range.
    """

    rank: int = field(
        default=8,
        metadata={"help": "The rank r of the pair A (r x in), B (out x r) beside every weight."},
    )
    alpha: float = field(
        default=32.0,
        metadata={"help": "Sets the scale of the update: W + (alpha / rank) · B A."},
    )
    rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / sqrt(rank) instead: rsLoRA."}
    )
    alora: Invocation = field(
        default=(),
        metadata={
            "help": "The adapter acts from the last place on where this text, or these token ids "
            "(151644,77091), stand in a row; the tokens before it are the base's alone: activated LoRA."
        },
    )
    targets: tuple[str, ...] = field(
        default=(ALL_LINEAR,),
        metadata={
            "help": "Which modules are adapted: all-linear (every linear layer of the blocks, not "
            "the output head), names (q_proj,v_proj), globs (`*.layers.3.*`), or re:REGEX on the "
            "whole path."
        },
    )
    exclude: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Modules that are not adapted, in the same forms as targets."},
    )
    target_parameters: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Bare parameters that are adapted beside the targets, above all the experts of a "
            "mixture of experts that keeps them in one tensor: experts (all of them), names "
            "(experts.gate_up_proj), globs, or re:REGEX. Each expert gets a pair of its own."
        },
    )
    layers: str | None = field(
        default=None,
        metadata={
            "help": "Adapt only these blocks, such as 0-5,8: counted from 0, both ends included. "
            "Default: all."
        },
    )
    rank_pattern: Mapping[str, int] = field(
        default_factory=dict,
        metadata={"help": "Another rank for some modules, such as '{down_proj: 16}'."},
    )
    alpha_pattern: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"help": "Another alpha for some modules, such as '{down_proj: 64}'."},
    )
    dropout: float = field(
        default=0.0,
        metadata={
            "help": "Probability, from 0 to below 1, with which an input element of A is dropped "
            "in training."
        },
    )
    init: Literal["kaiming", "gaussian"] = field(
        default="kaiming",
        metadata={
            "help": "Initialisation of A: kaiming (uniform, a = sqrt 5) or gaussian (standard "
            "deviation 1 / rank). B is always 0, so that the first step begins at the base model."
        },
    )

    def __post_init__(self) -> None:
        _positive_whole("rank", self.rank)
        for key, rank in self.rank_pattern.items():
            _positive_whole(f"rank_pattern[{key!r}]", rank)
        object.__setattr__(self, "alora", as_invocation(self.alora))
        variant_of(vars(self))  # there has to be one
        for name, alpha in [("alpha", self.alpha), *self.alpha_pattern.items()]:
            if not 0 < alpha < math.inf:
                raise ConfigError(f"alpha must be above 0 and finite; {name} is {alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must lie in [0, 1); it is {self.dropout}")
        if self.dropout:
            who, instead = f"dropout {self.dropout:g}", "set dropout to 0"
            require_capability(self.variant, Capability.DROPOUT, who, instead, error=ConfigError)
        if self.target_parameters and self.dropout:
            raise ConfigError(
                f"dropout is {self.dropout:g}, and pairs on bare parameters (target_parameters) have "
                "none: their input is not theirs alone, and peft refuses it too; set dropout to 0"
            )
        if not self.targets and not self.target_parameters:
            raise ConfigError("targets is empty: name what to adapt, for example 'all-linear'")
        if self.init not in ("kaiming", "gaussian"):
            raise ConfigError(f"init must be 'kaiming' or 'gaussian'; it is {self.init!r}")

    @property
    def variant(self) -> Variant:
        """The variant of LoRA that the options choose.

        Raises:
            ConfigError: no variant has these options together.
        """
        return variant_of(vars(self))


def _positive_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1; it is {value!r}")
