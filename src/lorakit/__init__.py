"""lorakit: low-rank adaptation (LoRA, arXiv 2106.09685) of frozen models.

    import lorakit

    model, tokenizer = lorakit.load_model("smollm2-135m")
    lorakit.attach(model, lorakit.LoraSpec(rank=8))
    lorakit.train(model, tokenizer, "rows.jsonl")
    lorakit.save_adapter(model, "my-adapter")

Names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters import load_adapter, read_adapter, save_adapter
    from lorakit.adapters.store import Store
    from lorakit.comparing.notebook import compare
    from lorakit.config import RunConfig, load_config
    from lorakit.data import DataSpec
    from lorakit.errors import (
        AdapterError,
        BaseMismatchError,
        CertificateError,
        ConfigError,
        DataError,
        DivergedError,
        InputError,
        LorakitError,
        ModelError,
        OutputError,
        StoreError,
        TargetError,
    )
    from lorakit.lora import LoraSpec, Plan, attach, detach, lora_layers, plan
    from lorakit.models import ModelSpec, load_model
    from lorakit.ranking.notebook import rank
    from lorakit.run.notebook import train
    from lorakit.training import TrainSpec

_HOMES = {
    "AdapterError": "errors",
    "BaseMismatchError": "errors",
    "CertificateError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "DataSpec": "data",
    "DivergedError": "errors",
    "InputError": "errors",
    "LoraSpec": "lora",
    "LorakitError": "errors",
    "ModelError": "errors",
    "ModelSpec": "models",
    "OutputError": "errors",
    "Plan": "lora",
    "RunConfig": "config",
    "Store": "adapters.store",
    "StoreError": "errors",
    "TargetError": "errors",
    "TrainSpec": "training",
    "attach": "lora",
    "compare": "comparing.notebook",
    "detach": "lora",
    "load_adapter": "adapters",
    "load_config": "config",
    "load_model": "models",
    "lora_layers": "lora",
    "plan": "lora",
    "rank": "ranking.notebook",
    "read_adapter": "adapters",
    "save_adapter": "adapters",
    "train": "run.notebook",
}

__all__ = [
    "AdapterError",
    "BaseMismatchError",
    "CertificateError",
    "ConfigError",
    "DataError",
    "DataSpec",
    "DivergedError",
    "InputError",
    "LoraSpec",
    "LorakitError",
    "ModelError",
    "ModelSpec",
    "OutputError",
    "Plan",
    "RunConfig",
    "Store",
    "StoreError",
    "TargetError",
    "TrainSpec",
    "attach",
    "compare",
    "detach",
    "load_adapter",
    "load_config",
    "load_model",
    "lora_layers",
    "plan",
    "rank",
    "read_adapter",
    "save_adapter",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name's room when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}")
    return getattr(import_module(f"lorakit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
