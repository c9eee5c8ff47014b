"""How to train: steps, learning rate, evaluation, checkpoints. One frozen description."""

from dataclasses import dataclass, field
from typing import Literal

from lorakit.errors import ConfigError


@dataclass(frozen=True)
class TrainSpec:
    """The schedule of a run.

    A step takes `batch_size` rows, whatever their lengths; its rows are split into forward
    passes of at most `batch_tokens` tokens and the gradient is divided once, by the step's count
    of supervised tokens, so that the split changes nothing but memory.

    Raises:
        ConfigError: a value is out of its range.
    """

    learning_rate: float | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "The peak learning rate, a number between 0 and 10; or auto: ten times the "
            "usual rate of full fine-tuning for a model of this width, fifteen times in runs of "
            "under 100 steps. With from, auto is what a probe finds."
        },
    )
    epochs: float = field(
        default=1.0,
        metadata={"help": "How often the run passes over the training rows, such as 3 or 0.5."},
    )
    max_steps: int | None = field(
        default=None,
        metadata={
            "help": "Train for this number of optimizer steps instead of epochs. Default: epochs "
            "decides."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Rows in one optimizer step."})
    batch_tokens: int = field(
        default=4096,
        metadata={
            "help": "The most tokens in one forward pass. The rows of a step are split into "
            "passes of this size and their gradients are summed: a smaller value needs less "
            "memory and gives the same step."
        },
    )
    new_row_weight: float | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "With from: how many times as often a row that is new to the parent is taken as "
            "one that it was trained on, such as 4; 1: all alike. auto: the square root of known rows "
            "over new ones, at most 8, and less in long runs."
        },
    )
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine",
        metadata={"help": "How the learning rate falls after the warm-up; constant: it stays."},
    )
    warmup: float = field(
        default=0.06,
        metadata={
            "help": "The share of the steps, from 0 to 1, in which the learning rate rises "
            "linearly to its peak."
        },
    )
    loss: Literal["nll", "dft"] = field(
        default="nll",
        metadata={
            "help": "What a token costs in training: nll (its negative log-likelihood) or dft (that times its "
            "own probability, arXiv 2508.05629). Held-out losses are nll always."
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "The share of every token's target that is spread over all words, such as 0.1; 0 is none. "
            "In training alone."
        },
    )
    lora_plus: float = field(
        default=1.0,
        metadata={
            "help": "LoRA+ (arXiv 2402.12354): how many times the learning rate of A the one of B is, such as "
            "8; 1: both have the same."
        },
    )
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay; 0 is none."})
    beta1: float = field(
        default=0.9, metadata={"help": "AdamW's decay rate of the first moment, below 1."}
    )
    beta2: float = field(
        default=0.999, metadata={"help": "AdamW's decay rate of the second moment, below 1."}
    )
    moments: Literal["32bit", "8bit"] = field(
        default="32bit",
        metadata={
            "help": "How AdamW's two moments are held: 32bit, or 8bit in blocks of 256 with a scale each: "
            "2 bytes a trained parameter in place of 8, for full fine-tuning and large ranks. Embeddings and "
            "tensors under 4,096 elements keep 32 bits."
        },
    )
    clip: float = field(
        default=1.0,
        metadata={
            "help": "The largest norm of a step's gradient; a larger gradient is scaled down to "
            "it. 0 turns clipping off."
        },
    )
    eval_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps between two evaluations on the held-out rows. Default: a quarter of the "
            "run."
        },
    )
    keep: Literal["best", "last"] = field(
        default="best",
        metadata={
            "help": "Which parameters the adapter holds: best (those with the lowest held-out loss "
            "at an evaluation, the one before the first step included) or last (those of the last step)."
        },
    )
    patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop early after this number of evaluations without a lower held-out loss. "
            "Default: never."
        },
    )
    checkpoint_every: int | None = field(
        default=None,
        metadata={"help": "Steps between two checkpoints. Default: one at every evaluation."},
    )
    activation_checkpointing: bool | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Recompute the activations in the backward pass: less memory for about half as "
            "many FLOPs more. auto: only where the forecast says that memory would not suffice."
        },
    )
    merge_aware: Literal["nf4", "int8"] | None = field(
        default=None,
        metadata={
            "help": "Train what a quantized merge will compute: each adapted linear layer computes with "
            "W + s·B·A quantized to nf4 or int8 and read again, and gradients pass through the rounding. "
            "For `lorakit merge --quantize`. Default: not."
        },
    )
    seed: int = field(
        default=0,
        metadata={
            "help": "Seed of the initialisation of A, the order of the rows, dropout, and the "
            "choice of held-out rows."
        },
    )

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate != "auto" and not (isinstance(rate, float | int) and 0 < rate < 10):
            raise ConfigError(f"learning_rate must be 'auto' or lie in (0, 10); it is {rate!r}")
        weight = self.new_row_weight
        if weight != "auto" and not (isinstance(weight, float | int) and 0 < weight <= 1000):
            raise ConfigError(
                f"new_row_weight must be 'auto' or lie in (0, 1000]; it is {weight!r}"
            )
        if self.keep not in ("best", "last"):
            raise ConfigError(f"keep must be 'best' or 'last'; it is {self.keep!r}")
        if self.loss not in ("nll", "dft"):
            raise ConfigError(f"loss must be 'nll' or 'dft'; it is {self.loss!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is a share in [0, 1); it is {self.label_smoothing}")
        if self.moments not in ("32bit", "8bit"):
            raise ConfigError(f"moments must be '32bit' or '8bit'; it is {self.moments!r}")
        if not 0 < self.lora_plus <= 1000:
            raise ConfigError(f"lora_plus must lie in (0, 1000]; it is {self.lora_plus}")
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
