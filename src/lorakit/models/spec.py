"""Which model, on which device and in which number format: small, frozen, quick to import."""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from lorakit.errors import ConfigError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")
FULL = "full"
"""The base_dtype of a model whose weights are all held in its dtype."""
FORMATS = ("nf4", "int4", "int8", "fp8")
"""Values of base_dtype that weights are packed in while they are read."""
BASE_DTYPES = (FULL, *FORMATS)
"""Values of base_dtype for any model."""
PACKED = "packed"
"""The base_dtype of a model whose weights stay as its own file packs them."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?")


@dataclass(frozen=True)
class ModelSpec:
    """A base model by name, and how to hold it.

    Raises:
        ConfigError: a value is not one of those named in its help.
    """

    model: str = field(
        default="smollm2-135m",
        metadata={
            "help": "The base model: the built-in smollm2-135m, a model folder, a .gguf file, or a "
            "Hugging Face hub id such as Qwen/Qwen3-0.6B."
        },
    )
    revision: str | None = field(
        default=None,
        metadata={
            "help": "Branch, tag or commit of a hub id. The commit that it stands for is recorded. "
            "Default: main."
        },
    )
    device: str = field(
        default="auto",
        metadata={
            "help": "Where the model computes: cpu, mps, cuda or cuda:N; auto takes cuda where "
            "there is one, else mps, else cpu."
        },
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of the frozen weights: float32, bfloat16 or float16; auto is "
            "bfloat16 where the device multiplies it natively, else float32."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Allow Python code among the model's files to run. Without it such a model is "
            "refused."
        },
    )
    ignore_adapter: bool = field(
        default=False,
        metadata={
            "help": "Take the model alone from a folder that also holds an adapter "
            "(adapter_config.json). Without it such a folder is refused, because either can be meant."
        },
    )
    base_dtype: str = field(
        default="full",
        metadata={
            "help": "How the frozen weights of the blocks' linear layers are held: nf4 or int4 (a "
            "quarter of bfloat16's memory), int8 or fp8 (half of it); products are computed in "
            "--dtype. packed: a .gguf file's or the built-in model's own blocks stay as they are. full: "
            "in --dtype too; a folder that another library quantized stays as it is."
        },
    )

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigError("model is empty: give a name, a folder, a .gguf file or a hub id")
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"dtype {self.dtype!r} is unknown: {did_you_mean(self.dtype, DTYPES)}"
            )
        if self.base_dtype not in (*BASE_DTYPES, PACKED):
            raise ConfigError(
                f"base_dtype {self.base_dtype!r} is unknown: "
                f"{did_you_mean(self.base_dtype, (*BASE_DTYPES, PACKED))}"
            )
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device must be auto, cpu, mps, cuda or cuda:N; it is {self.device!r}"
            )


def as_spec(model: str | ModelSpec, options: dict[str, Any]) -> ModelSpec:
    """A `ModelSpec` from a name and options, or the given one when there are no options.

    Raises:
        ConfigError: an option is unknown, or options come beside a ready spec.
    """
    if isinstance(model, ModelSpec):
        if options:
            raise ConfigError(
                f"give options inside the ModelSpec, not beside it: {', '.join(sorted(options))}"
            )
        return model
    known = [f.name for f in fields(ModelSpec) if f.name != "model"]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}: {did_you_mean(name, known)}")
    return ModelSpec(model=model, **options)
