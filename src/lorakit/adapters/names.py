"""A pair's tensor names in peft's format."""

from collections.abc import Iterable
from typing import Literal

from lorakit.lora.plan import Target

PREFIX = "base_model.model."
_SUFFIXES: dict[str, Literal["A", "B"]] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
# peft writes the whole embedding beside a pair on it: a copy of the base's, so that a vocabulary
# that was made larger is not lost.
_WHOLE = (".base_layer.weight", ".weight")
_FOREIGN = {
    ".lora_magnitude_vector": "a DoRA magnitude; lorakit has no DoRA",
    ".lora_B.bias": "a LoRA bias (lora_bias); lorakit trains no biases",
    ".trainable_tokens_delta": "rows for new tokens (trainable_token_indices)",
    ".bias": "a trained bias (bias other than 'none') or a module saved whole",
    ".lora_A": "a pair on a bare parameter (target_parameters)",
    ".lora_B": "a pair on a bare parameter (target_parameters)",
}


def pair_names(path: str, kind: str) -> tuple[str, str]:
    """Names of A and B of the module at `path`.

    >>> pair_names("model.embed_tokens", "embedding")[0]
    'base_model.model.model.embed_tokens.lora_embedding_A'
    """
    if kind == "embedding":
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def expected_shapes(targets: Iterable[Target]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that an adapter on these targets has, A before B."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target in targets:
        names = pair_names(target.path, target.geometry.kind)
        shapes.update(zip(names, target.geometry.pair_shapes(target.rank), strict=True))
    return shapes


def pair_of(name: str) -> tuple[str, Literal["A", "B"]] | None:
    """The module path and side that a tensor name means; None where it is not one of a pair.

    >>> pair_of("base_model.model.h.0.c_attn.lora_B.weight")
    ('h.0.c_attn', 'B')
    """
    if not name.startswith(PREFIX):
        return None
    for suffix, side in _SUFFIXES.items():
        if name.endswith(suffix):
            return name[len(PREFIX) : -len(suffix)], side
    return None


def whole_weight_of(name: str) -> str | None:
    """The path of the module whose whole weight this tensor is; None where it is not one."""
    if not name.startswith(PREFIX) or pair_of(name):
        return None
    for suffix in _WHOLE:
        if name.endswith(suffix):
            return name[len(PREFIX) : -len(suffix)]
    return None


def foreign(name: str) -> str:
    """What a tensor is that lorakit has no place for."""
    if not name.startswith(PREFIX):
        return f"its name does not start with {PREFIX!r}, as peft's do"
    for suffix, reason in _FOREIGN.items():
        if name.endswith(suffix):
            return reason
    return "not a name of peft's LoRA format"
