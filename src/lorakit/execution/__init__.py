"""How a loaded model is run: packed batches, fused blocks, cached steps, generation.

The names below are loaded when first used: importing this package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Generation": "generate",
    "head_is_plain": "packed",
    "packed_attention": "packed",
    "packed_hidden": "packed",
    "packed_logits": "packed",
    "padded_logits": "packed",
    "supports_packing": "packed",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
