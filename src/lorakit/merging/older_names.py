"""Keys of config.json by which older readers know what transformers 5 keeps in `rope_parameters`.

    transformers 5                          before, and still in mlx-lm 0.32
    rope_parameters.rope_theta              rope_theta
    rope_parameters.partial_rotary_factor   partial_rotary_factor
    all others in rope_parameters           rope_scaling, its kind as `rope_type` and as `type`
    rope_parameters.sliding_attention       rope_local_base_freq (its rope_theta)
    rope_parameters.full_attention          as rope_parameters itself

A reader that misses one of these takes a default of its own, rotates by other angles and says nothing.
Keys that are there already stay as they are.
"""

from collections.abc import Mapping
from typing import Any

NEW = "rope_parameters"
_FULL, _SLIDING = "full_attention", "sliding_attention"
# GPT-NeoX has names of its own, and llama.cpp's converter stops without them.
_NAMES = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
    "modernbert-decoder": ("global_rope_theta", "partial_rotary_factor"),
}
_LOCAL = {"modernbert-decoder": "local_rope_theta", "mimo_v2_flash": "swa_rope_theta"}
# Of models with two kinds of layers, those that had a rope_scaling. transformers 5 would take one in place
# of all `rope_parameters` of any other.
_SCALED = ("gemma3_text", "gemma3n_text", "olmo3")
# transformers 4 refuses a rope_scaling of Phi-3 with any key but these.
_PHI3 = ("type", "short_factor", "long_factor")


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the older keys beside every `rope_parameters` in it, at any depth.

    Args:
        config: the content of config.json; not changed.

    >>> with_older_names({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})["rope_theta"]
    500000.0
    """
    made = {
        key: with_older_names(value) if isinstance(value, Mapping) and key != NEW else value
        for key, value in config.items()
    }
    rope = config.get(NEW)
    if not isinstance(rope, Mapping) or not rope:
        return made
    for key, value in _older(str(config.get("model_type")), rope).items():
        if made.get(key) is None:
            made[key] = value
    return made


def _older(kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The older keys of one model, without those that have no value."""
    by_layer = any(isinstance(value, Mapping) for value in rope.values())
    full = (rope.get(_FULL) or {}) if by_layer else rope
    local = (rope.get(_SLIDING) or {}) if by_layer else {}
    factor = full.get("partial_rotary_factor")
    if by_layer and local.get("partial_rotary_factor") != factor:
        factor = None  # one key for all layers would speak of both kinds
    theta, share = _NAMES.get(kind, ("rope_theta", "partial_rotary_factor"))
    found = {
        theta: full.get("rope_theta"),
        share: factor,
        "rope_scaling": _scaling(kind, full) if not by_layer or kind in _SCALED else None,
        _LOCAL.get(kind, "rope_local_base_freq"): local.get("rope_theta"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _scaling(kind: str, rope: Mapping[str, Any]) -> dict[str, Any] | None:
    own = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    name = rope.get("rope_type") or rope.get("type") or "default"
    more = {key: value for key, value in rope.items() if key not in own}
    if name == "default" and not more:
        return None
    scaling = {"rope_type": name, "type": name, **more}
    return {key: scaling[key] for key in _PHI3 if key in scaling} if kind == "phi3" else scaling
