"""A pair's tensor names in peft's format."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lorakit.adapters.parameter_names import stems
from lorakit.errors import AdapterError
from lorakit.lora.planning import Target
from lorakit.lora.variant import Variant
from lorakit.lora.variants import peft_suffixes

PREFIX = "base_model.model."
_SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
# peft writes the whole embedding beside a pair on it: a copy of the base's, so that a vocabulary
# that was made larger is not lost.
_WHOLE = (".base_layer.weight", ".weight")
_FOREIGN = {
    ".lora_B.bias": "a LoRA bias (lora_bias); lorakit trains no biases",
    ".trainable_tokens_delta": "rows for new tokens (trainable_token_indices)",
    ".bias": "a trained bias (bias other than 'none') or a module saved whole",
    ".lora_A": "a matrix that is no layer's weight: peft's end in .lora_A.weight",
    ".lora_B": "a matrix that is no layer's weight: peft's end in .lora_B.weight",
    ".lora_a": "mlx-lm's name; `lorakit import` reads its folders",
    ".lora_b": "mlx-lm's name; `lorakit import` reads its folders",
    ".lora_a.weight": "torchtune's own name: let its checkpointer save the adapter in peft's format",
    ".lora_b.weight": "torchtune's own name: let its checkpointer save the adapter in peft's format",
    ".lora_down.weight": "kohya's name, of an adapter for a model that makes images",
    ".lora_up.weight": "kohya's name, of an adapter for a model that makes images",
    ".lora.down.weight": "diffusers' older name, of an adapter for a model that makes images",
    ".lora.up.weight": "diffusers' older name, of an adapter for a model that makes images",
    ".linear_in.weight": "NeMo's name: export the adapter in the Hugging Face layout with NeMo",
    ".linear_out.weight": "NeMo's name: export the adapter in the Hugging Face layout with NeMo",
    ".lora_E": "AdaLoRA's diagonal (peft_type ADALORA)",
    ".hada_w1_a": "LoHa (peft_type LOHA)",
    ".lokr_w1": "LoKr (peft_type LOKR)",
}


def pair_names(path: str, kind: str) -> tuple[str, str]:
    """Names of A and B of the module at `path`.

    >>> pair_names("model.embed_tokens", "embedding")[0]
    'base_model.model.model.embed_tokens.lora_embedding_A'
    """
    if kind == "embedding":
        return f"{PREFIX}{path}.lora_embedding_A", f"{PREFIX}{path}.lora_embedding_B"
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def tensor_names(kinds: Mapping[str, str], variant: Variant) -> dict[str, dict[str, str]]:
    """Names of all tensors by path and by what they are: A, B, then the variant's.

    Args:
        kinds: kind of every adapted module and bare parameter of an adapter, by path, those of one module
            in the order that it keeps them: the names of parameters depend on one another.
        variant: of the adapter.
    """
    places = stems(kinds, (path for path, kind in kinds.items() if kind == "experts"))
    named = {}
    for path, kind in kinds.items():
        name_A, name_B = pair_names(places[path], kind)
        more = {k: f"{PREFIX}{places[path]}{end}" for k, end in variant.peft_suffixes.items()}
        named[path] = {"A": name_A, "B": name_B, **more}
    return named


def expected_shapes(targets: Iterable[Target]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that an adapter on these targets has, A before B."""
    held = list(targets)
    if not held:
        return {}
    names = tensor_names({t.path: t.geometry.kind for t in held}, held[0].variant)
    return {
        names[target.path][key]: shape for target in held for key, shape in target.tensors.items()
    }


def pair_of(name: str) -> tuple[str, str] | None:
    """The module path, and A, B or what a variant keeps beside them; None for any other tensor.

    >>> pair_of("base_model.model.h.0.c_attn.lora_B.weight")
    ('h.0.c_attn', 'B')
    """
    if not name.startswith(PREFIX):
        return None
    for suffix, side in (_SUFFIXES | peft_suffixes()).items():
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
    for suffix, reason in _FOREIGN.items():
        if name.endswith(suffix):
            return reason
    if not name.startswith(PREFIX):
        return f"its name does not start with {PREFIX!r}, as peft's do"
    return "not a name of peft's LoRA format"


def check_pair(
    file: Path, path: str, kind: str, shape_A: tuple[int, ...], shape_B: tuple[int, ...]
) -> None:
    """See that A and B fit each other: 2-D both, or a kernel in A and ones in B's place of it.

    Raises:
        AdapterError: they do not.
    """
    fits = len(shape_A) == len(shape_B)
    fits = fits and (len(shape_A) > 2 if kind == "conv" else len(shape_A) == 2)
    if fits:
        groups, rest = divmod(shape_A[0], max(shape_B[1], 1))
        fits = rest == 0 and (groups == 1 or kind == "conv")
        fits = fits and all(size == 1 for size in shape_B[2:])
    if not fits:
        raise AdapterError(
            f"{file}: A of {path} is {shape_A} and its B {shape_B}, which make no pair: B's second "
            "side must be A's first"
        )
