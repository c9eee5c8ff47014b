"""The method: low-rank pairs beside frozen weights. Imports torch and nothing else.

`plan` says what a `LoraSpec` would adapt in a model; `attach` does it; `lora_layers` finds the
pairs again; `detach` gives the untouched base back.

The names below are loaded when first used: `LoraSpec`, and with it the command line, needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.lora.attaching import attach, detach, lora_layers
    from lorakit.lora.conv import LoraConv
    from lorakit.lora.embedding import LoraEmbedding
    from lorakit.lora.layers import LoraLayer, LoraLinear
    from lorakit.lora.planning import Plan, Skipped, Target, plan
    from lorakit.lora.spec import LoraSpec

_HOMES = {
    "LoraConv": "conv",
    "LoraEmbedding": "embedding",
    "LoraLayer": "layers",
    "LoraLinear": "layers",
    "LoraSpec": "spec",
    "Plan": "planning",
    "Skipped": "planning",
    "Target": "planning",
    "attach": "attaching",
    "detach": "attaching",
    "lora_layers": "attaching",
    "plan": "planning",
}

__all__ = [
    "LoraConv",
    "LoraEmbedding",
    "LoraLayer",
    "LoraLinear",
    "LoraSpec",
    "Plan",
    "Skipped",
    "Target",
    "attach",
    "detach",
    "lora_layers",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
