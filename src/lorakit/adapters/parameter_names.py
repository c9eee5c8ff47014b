"""Names of pairs on bare parameters in peft's format: by depth of nesting, not by the parameter's name.

peft (0.21, ParamWrapper) puts one wrapper around a module for each of its adapted parameters, in the order in
which the module keeps them; the last stands outside. The file has the wrappers' own places:

    experts.down_proj      ->  …mlp.experts.lora_A.weight
    experts.gate_up_proj   ->  …mlp.experts.base_layer.lora_A.weight

Which tensor is whose therefore depends on that order, which a file alone does not say.
"""

from collections.abc import Iterable, Mapping, Sequence

from lorakit.errors import AdapterError

_INSIDE = ".base_layer"
# The order in which transformers' modules keep the matrices of their experts (5.24, all families).
_ORDER = (
    *("gate_up_proj", "gate_proj", "up_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj"),
    *("down_proj_bias", "w1", "v1", "w3", "w2", "wi", "wo", "weight"),
)


def stems(paths: Iterable[str], parameters: Iterable[str]) -> dict[str, str]:
    """What stands before `.lora_A.weight` for each adapted path.

    Args:
        paths: of adapted modules and parameters, those of one module in the order that it keeps them.
        parameters: which of them are bare parameters.

    >>> stems(["m.experts.up", "m.experts.down"], ["m.experts.up", "m.experts.down"])
    {'m.experts.up': 'm.experts.base_layer', 'm.experts.down': 'm.experts'}
    """
    bare = set(parameters)
    owners: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for path in paths:
        found[path] = path
        if path in bare:
            owners.setdefault(path.rpartition(".")[0], []).append(path)
    for owner, adapted in owners.items():
        for depth, path in enumerate(reversed(adapted)):
            found[path] = owner + _INSIDE * depth
    return found


def parameters_of(
    stem_paths: Sequence[str],
    targets: Sequence[str],
    *,
    modules: Iterable[str] = (),
    order: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """The path of the bare parameter by the stem of its tensors; stems of modules are left out.

    Args:
        stem_paths: what stands before `.lora_A.weight` in a file.
        targets: `target_parameters` of the file's configuration.
        modules: stems that target_modules names: an entry without a dot does not mean them.
        order: names of the parameters of each module, in its order, where a model is known. Without
            one, the order of transformers' modules is taken.

    Raises:
        AdapterError: a module has tensors of another number of parameters than are named.
    """
    named_modules = set(modules)
    by_owner: dict[str, list[str]] = {}
    for stem in stem_paths:
        owner, depth = stem, 0
        while owner.endswith(_INSIDE):
            owner, depth = owner.removesuffix(_INSIDE), depth + 1
        if depth or _entries(owner, targets, stem in named_modules):
            by_owner.setdefault(owner, []).append(stem)
    found: dict[str, str] = {}
    for owner, held in by_owner.items():
        names = _entries(owner, targets, False)
        names = _ordered(owner, names, None if order is None else order.get(owner, ()))
        if len(names) != len(held):
            raise AdapterError(
                f"{owner} has tensors of {len(held)} bare parameters, and target_parameters names "
                f"{len(names)} of it: {', '.join(names) or 'none'}"
            )
        for depth, name in enumerate(reversed(names)):
            stem = owner + _INSIDE * depth
            if stem not in held:
                raise AdapterError(f"{owner} has no tensors at {stem}, where peft nests {name}")
            found[stem] = f"{owner}.{name}"
    return found


def _entries(owner: str, targets: Sequence[str], is_module: bool) -> list[str]:
    """Names of the parameters of a module that target_parameters names; peft's rule of matching."""
    names: dict[str, None] = {}
    for entry in targets:
        module, _, name = entry.rpartition(".")
        if (not module and not is_module) or owner == module or owner.endswith("." + module):
            names[name] = None
    return list(names)


def _ordered(owner: str, names: Sequence[str], known: Sequence[str] | None) -> list[str]:
    if known is not None:
        return [name for name in known if name in names]
    if len(names) == 1:
        return list(names)
    if strange := [name for name in names if name not in _ORDER]:
        raise AdapterError(
            f"which tensors of {owner} belong to {strange[0]} depends on the model, which is not known "
            "here: load the adapter beside its base and save it again"
        )
    return sorted(names, key=_ORDER.index)
