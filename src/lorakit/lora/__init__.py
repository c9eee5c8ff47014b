"""The method: low-rank pairs beside frozen weights. Imports torch and nothing else.

`plan` says what a `LoraSpec` would adapt in a model; `attach` does it; `lora_layers` finds the
pairs again; `detach` gives the untouched base back.
"""

from lorakit.lora.attach import attach, detach, lora_layers
from lorakit.lora.layers import LoraConv, LoraEmbedding, LoraLayer, LoraLinear
from lorakit.lora.plan import Plan, Skipped, Target, plan
from lorakit.lora.spec import LoraSpec

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
