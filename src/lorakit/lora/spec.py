"""What to adapt and how: one frozen description, small, strict at its boundary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lorakit.errors import ConfigError
from lorakit.lora.initialisation import Initialisation
from lorakit.lora.initialisations import INITIALISATIONS, initialisation_of
from lorakit.lora.invocation import Invocation, as_invocation
from lorakit.lora.variant import Capability, Variant, require_capability
from lorakit.lora.variants import variant_of

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSpec:
    """Which modules get a pair (A, B), of which rank, scaled by what.

    The adapted layer computes ``W x + s · B (A x)`` with ``s = alpha / rank``, or
    ``alpha / sqrt(rank)`` with `rslora` (arXiv 2312.03732). With `dora` each output is scaled too
    (arXiv 2402.09353).

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
    dora: bool = field(
        default=False,
        metadata={
            "help": "Train a magnitude for each output beside A and B, and scale the rows of "
            "W + s·B·A to it: DoRA."
        },
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
    init: str = field(
        default="kaiming",
        metadata={
            "help": "Initialisation of A and B: "
            + "; ".join(f"{each.name} ({each.help})" for each in INITIALISATIONS.values())
            + "; pissa_niter_N (pissa by a fast SVD of N iterations, such as 4). With each the first step "
            "begins at the base model."
        },
    )
    eva_rho: float = field(
        default=2.0,
        metadata={
            "help": "With init eva: a module's rank is at most this many times rank, and the ranks of all "
            "modules add up to what they would be; 1: every module has its rank."
        },
    )
    modules_to_save: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Modules trained whole beside the pairs, by the ends of their paths, as in peft: "
            "norm means every module whose path ends so. They are saved with the adapter."
        },
    )
    token_rows: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict,
        metadata={
            "help": "Rows of embeddings trained whole, by the end of the embedding's path, such as "
            "'{embed_tokens: [5, 9]}': token ids. Where weights are tied, the row is the head's too."
        },
    )
    train_tokens: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Tokens of the base's tokenizer whose rows are trained, in the embedding and in the "
            "output head, such as '<|tool|>,<|end|>'; no other row moves."
        },
    )
    bias: Literal["none", "all", "lora_only"] = field(
        default="none",
        metadata={
            "help": "Biases of the base trained too: none, all, or lora_only (beside pairs)."
        },
    )
    lora_bias: bool = field(
        default=False, metadata={"help": "A trained bias beside each pair, scaled as B A is."}
    )
    keep_ties: bool = field(
        default=True,
        metadata={
            "help": "A module trained whole whose weight others share stays tied to them "
            "(ensure_weight_tying in peft); off: each has its own."
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
        if self.lora_bias:
            require_capability(
                *(self.variant, Capability.ADDED_BIAS, "lora_bias"),
                "leave it out, or train the layers' own biases (bias)",
                error=ConfigError,
            )
        if self.target_parameters and self.dropout:
            raise ConfigError(
                f"dropout is {self.dropout:g}, and pairs on bare parameters (target_parameters) have "
                "none: their input is not theirs alone, and peft refuses it too; set dropout to 0"
            )
        if not self.targets and not self.target_parameters:
            raise ConfigError("targets is empty: name what to adapt, for example 'all-linear'")
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(f"bias must be 'none', 'all' or 'lora_only'; it is {self.bias!r}")
        if self.train_tokens and self.token_rows:
            raise ConfigError("train_tokens and token_rows say the same: leave one of them out")
        initialisation_of(self.init)  # there has to be one
        if not 1 <= self.eva_rho < math.inf:
            raise ConfigError(f"eva_rho must be at least 1 and finite; it is {self.eva_rho}")

    @property
    def variant(self) -> Variant:
        """The variant of LoRA that the options choose.

        Raises:
            ConfigError: no variant has these options together.
        """
        return variant_of(vars(self))

    @property
    def initialisation(self) -> Initialisation:
        """How A and B begin."""
        return initialisation_of(self.init)

    @property
    def held(self) -> "LoraSpec":
        """The spec of the pairs as they are held and saved: plain ones, at twice the rank if they split."""
        how = self.initialisation
        if how.fill is None:
            return self
        ranks = {key: how.held * rank for key, rank in self.rank_pattern.items()}
        times = self.variant.scale(1.0, 1) / self.variant.scale(1.0, how.held)
        return replace(
            self,
            rank=how.held * self.rank,
            alpha=times * self.alpha,
            rank_pattern=ranks,
            alpha_pattern={key: times * alpha for key, alpha in self.alpha_pattern.items()},
            init="kaiming",
        )


def _positive_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1; it is {value!r}")
