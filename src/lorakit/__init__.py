"""lorakit: low-rank adaptation (LoRA, arXiv 2106.09685) of frozen models.

    >>> import lorakit
    >>> model, tokenizer = lorakit.load_model("tiny-model")
    >>> plan = lorakit.attach(model, lorakit.LoraSpec(rank=8))
    >>> result = lorakit.train(model, tokenizer, "rows.jsonl", epochs=1)
    >>> answer = lorakit.generate(model, "say lamp", tokenizer=tokenizer, max_new_tokens=4)
    >>> folder = lorakit.save_adapter(model, "my-adapter")

Every error that a user can meet is in `lorakit.errors`. Names are loaded when first used, so that
importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters import load_adapter, read_adapter, save_adapter
    from lorakit.adapters.store import Store
    from lorakit.comparing.notebook import compare
    from lorakit.config import RunConfig, load_config
    from lorakit.data import DataSpec
    from lorakit.lora import LoraSpec, Plan, attach, detach, lora_layers, plan
    from lorakit.models import ModelSpec, load_model
    from lorakit.ranking.notebook import rank
    from lorakit.run.notebook.combining import combine
    from lorakit.run.notebook.evaluating import evaluate
    from lorakit.run.notebook.exporting import export
    from lorakit.run.notebook.merging import merge
    from lorakit.run.notebook.training import train
    from lorakit.serving.answering.notebook import generate
    from lorakit.serving.notebook import serve
    from lorakit.training import TrainSpec

_HOMES = {
    "DataSpec": "data",
    "LoraSpec": "lora",
    "ModelSpec": "models",
    "Plan": "lora",
    "RunConfig": "config",
    "Store": "adapters.store",
    "TrainSpec": "training",
    "attach": "lora",
    "combine": "run.notebook.combining",
    "compare": "comparing.notebook",
    "detach": "lora",
    "evaluate": "run.notebook.evaluating",
    "export": "run.notebook.exporting",
    "generate": "serving.answering.notebook",
    "load_adapter": "adapters",
    "load_config": "config",
    "load_model": "models",
    "lora_layers": "lora",
    "merge": "run.notebook.merging",
    "plan": "lora",
    "rank": "ranking.notebook",
    "read_adapter": "adapters",
    "save_adapter": "adapters",
    "serve": "serving.notebook",
    "train": "run.notebook.training",
}

__all__ = [
    "DataSpec",
    "LoraSpec",
    "ModelSpec",
    "Plan",
    "RunConfig",
    "Store",
    "TrainSpec",
    "attach",
    "combine",
    "compare",
    "detach",
    "evaluate",
    "export",
    "generate",
    "load_adapter",
    "load_config",
    "load_model",
    "lora_layers",
    "merge",
    "plan",
    "rank",
    "read_adapter",
    "save_adapter",
    "serve",
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
