"""How to train: steps, learning rate, evaluation, checkpoints. One frozen description."""

from dataclasses import dataclass, field
from typing import Literal

from lorakit.errors import ConfigError


@dataclass(frozen=True)
class TrainSpec:
    """The schedule of a run.

    A step takes `batch_size` rows, whatever their lengths; its rows are split into forward
    passes of at most `batch_tokens` tokens and the gradient is divided once, by the step's count
    of loss-bearing tokens, so that the split changes nothing but memory.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float | Literal["auto"] = field(
        default="auto",
        metadata={"help": "Peak rate, or 'auto': ten times full fine-tuning's, by model width."},
    )
    epochs: float = field(
        default=1.0, metadata={"help": "Passes over the training rows; a fraction will do."}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Stop after this many steps, whatever epochs says."}
    )
    batch_size: int = field(default=16, metadata={"help": "Rows of one optimizer step."})
    batch_tokens: int = field(
        default=4096,
        metadata={"help": "Most tokens in one forward pass; a larger step is accumulated."},
    )
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "Decay after the warm-up: cosine, linear, constant."}
    )
    warmup: float = field(
        default=0.06, metadata={"help": "Share of the steps in which the rate rises linearly."}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's decoupled weight decay."})
    beta1: float = field(default=0.9, metadata={"help": "AdamW's decay of the first moment."})
    beta2: float = field(default=0.999, metadata={"help": "AdamW's decay of the second moment."})
    clip: float = field(
        default=1.0, metadata={"help": "Largest norm of a step's gradient; 0 turns clipping off."}
    )
    eval_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps between evaluations on held-out rows [default: a quarter of all]."
        },
    )
    keep: Literal["best", "last"] = field(
        default="best",
        metadata={
            "help": "Which parameters a run leaves: best (of the evaluation with the lowest "
            "held-out loss) or last."
        },
    )
    patience: int | None = field(
        default=None,
        metadata={"help": "Stop early after this many evaluations without a new best."},
    )
    checkpoint_every: int | None = field(
        default=None,
        metadata={"help": "Steps between checkpoints [default: at every evaluation]."},
    )
    activation_checkpointing: bool | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Recompute activations in the backward pass, at half as many FLOPs again; "
            "'auto': where the forecast says that memory would run out."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of A's start, the order of rows and dropout."})

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate != "auto" and not (isinstance(rate, float | int) and 0 < rate < 10):
            raise ConfigError(f"learning_rate must be 'auto' or lie in (0, 10); it is {rate!r}")
        if self.keep not in ("best", "last"):
            raise ConfigError(f"keep must be 'best' or 'last'; it is {self.keep!r}")
        for name in ("batch_size", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; it is {getattr(self, name)}")
        for name in ("max_steps", "eval_every", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; it is {value}")
        if not self.epochs > 0:
            raise ConfigError(f"epochs must be above 0; it is {self.epochs}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is a share of the steps in [0, 1]; it is {self.warmup}")
        for name in ("weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0; it is {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1); it is {getattr(self, name)}")
