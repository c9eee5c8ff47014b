"""Linear layers whose names peft takes for fused experts, written so that it reads them as trained.

Where transformers keeps the experts of a family fused, peft (0.21, `_convert_peft_config_moe`) turns the
names of the former experts in `target_modules` into the fused parameters, in a list, in whole paths and
in a regular expression alike. Dense layers and shared experts of those names are linear layers still, and
lose their pairs without an error. What `target_parameters` names is not turned: the entry `PATH.weight`
puts the same pair beside the same layer, under the same names of tensors.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorakit.lora.targets import first_hit
from lorakit.models.weights import conversion_family

# By transformers' name of the rule for a family's checkpoints: peft's `_MOE_TARGET_MODULE_MAPPING`. Its
# `gate` is left out, because it becomes `gate.weight`, which means the same pair.
_TAKEN = {"mixtral": ("w1", "w2", "w3"), "qwen2_moe": ("gate_proj", "up_proj", "down_proj")}
_EVERY = frozenset(name for names in _TAKEN.values() for name in names)
_WEIGHT = ".weight"


def taken_names(model_type: str | None) -> tuple[str, ...]:
    """Last names of modules that peft takes for fused experts beside a model of this type."""
    family = conversion_family(model_type) if model_type else None
    return _TAKEN.get(family or "", ())


def taken_of(model: Any) -> tuple[str, ...]:
    """The same beside a model; () for one that is not of transformers."""
    return taken_names(getattr(getattr(model, "config", None), "model_type", None))


def by_parameter(
    config: Mapping[str, Any],
    taken: Collection[str],
    dense: Sequence[str],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> dict[str, Any]:
    """A configuration that names the layers that peft would take for experts in `target_parameters`.

    Args:
        config: adapter_config.json, in which `target_modules` names every adapted module.
        taken: last names of modules that peft takes for experts.
        dense: paths of the adapted modules, bare parameters aside.
        ranks, alphas: of all of them by path.

    Returns:
        The same configuration where there are none. Else with the dropout 0 that peft demands of
        `target_parameters`; it concerns training only, and lorakit.json keeps it.
    """
    bare = [path for path in dense if _last(path) in taken]
    if not bare:
        return dict(config)
    named = config["target_modules"]
    rest = [path for path in dense if path not in bare]
    if isinstance(named, str):
        named = "|".join(re.escape(path) for path in rest) if rest else []
    else:
        named = [name for name in named if _last(name) not in taken]
    changed = {
        "target_modules": named,
        "target_parameters": [
            *(config.get("target_parameters") or ()),
            *(path + _WEIGHT for path in bare),
        ],
        "lora_dropout": 0.0,
    }
    default_rank, default_alpha = config["r"], config["lora_alpha"]
    for key, default, values in (
        ("rank_pattern", default_rank, ranks),
        ("alpha_pattern", default_alpha, alphas),
    ):
        seen = {path: path + _WEIGHT if path in bare else path for path in ranks}
        if any(first_hit(config[key], seen[path], default) != values[path] for path in ranks):
            changed[key] = {
                f"^{re.escape(path)}" + (rf"(\{_WEIGHT})?" if path in bare else ""): value
                for path, value in sorted(values.items())
                if value != default
            }
    return {**config, **changed}


def by_module(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The other way round: such entries of `target_parameters` moved to `target_modules`.

    Returns:
        The configuration, and the last names of the modules that were moved.
    """
    given = config.get("target_parameters") or ()
    if not isinstance(given, list | tuple):
        return dict(config), ()
    moved = [
        name.removesuffix(_WEIGHT)
        for name in given
        if isinstance(name, str)
        and name.endswith(_WEIGHT)
        and _last(name.removesuffix(_WEIGHT)) in _EVERY
    ]
    if not moved:
        return dict(config), ()
    named = config.get("target_modules") or ()
    if isinstance(named, str):
        ends = "|".join(re.escape(path) for path in moved)
        named = rf"(?:{named})|(?:.*\.)?(?:{ends})"
    else:
        named = [*named, *moved]
    left = [name for name in given if str(name).removesuffix(_WEIGHT) not in moved]
    changed = {**config, "target_modules": named, "target_parameters": left or None}
    return changed, tuple(sorted({_last(path) for path in moved}))


def named_for_experts(
    config: Mapping[str, Any], paths: Sequence[str], taken: Collection[str]
) -> list[str]:
    """The adapted modules that peft would take for experts as the configuration stands."""
    entries = set(map(str, config.get("target_parameters") or ()))
    return [path for path in paths if _last(path) in taken and path + _WEIGHT not in entries]


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
