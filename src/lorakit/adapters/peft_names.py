"""Where peft puts a pair that a file has under a path, and the path by which a file reaches a layer.

peft (0.21, `convert_peft_adapter_state_dict_for_transformers`) renames the tensors of an adapter by the
rules that transformers has for older checkpoints of the family, be the adapter new or old. Some rules
change names that are right already: beside a Laguna, `mlp.shared_experts.up_proj` becomes
`mlp.shared_experts..up_proj`, which no layer has, and peft leaves the pair out with a warning. The older
name, `mlp.shared_expert.up_proj`, becomes the right one; so it is the one that is written.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorakit.adapters.names import PREFIX, pair_names, pair_of
from lorakit.adapters.parameter_names import stems
from lorakit.models.renaming import Renamings

_ADAPTER = ".default"
_LORA = re.compile(r"(lora_[^.]*)")


def read_at(path: str, rules: Renamings, kind: str = "linear") -> str:
    """The path in the model at which peft puts the pair that a file has at `path`."""
    name, _ = pair_names(path, kind)
    # peft cuts its own prefix off, and puts the adapter's name in, before the rules are applied.
    bare = name.removeprefix(PREFIX)
    renamed = rules.newer(_LORA.sub(rf"\1{_ADAPTER}", bare, count=1))
    renamed = "".join(renamed.rsplit(_ADAPTER, 1))
    # A name that the rules have only made shorter at its front is taken as it was.
    if name.endswith(renamed):
        return path
    return renamed.removesuffix(bare.removeprefix(path))


def file_path(path: str, rules: Renamings, kind: str = "linear") -> str | None:
    """A path under which peft finds the pair of the layer at `path`; None where there is none."""
    if read_at(path, rules, kind) == path:
        return path
    name = pair_names(path, kind)[0].removeprefix(PREFIX)
    end = name.removeprefix(path)
    for older in rules.older(name):
        if older.endswith(end):
            candidate = older.removesuffix(end)
            if read_at(candidate, rules, kind) == path:
                return candidate
    return None


def moved_for_peft(model: Any, kinds: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Under which paths the pairs on layers of a model stand in a file, so that peft finds them.

    Args:
        model: the base; may be on the meta device.
        kinds: kind of each adapted module and bare parameter by path; those of one module in its order.

    Returns:
        The path in the file by the path that it would have, of those that differ; and the paths of
        layers that peft finds under no name.
    """
    rules = Renamings.of(model)
    moved: dict[str, str] = {}
    lost: list[str] = []
    places = stems(kinds, (path for path, kind in kinds.items() if kind == "experts"))
    for path, stem in places.items():
        found = file_path(stem, rules, kinds[path])
        if found is None:
            lost.append(path)
        elif found != stem:
            moved[stem] = found
    return moved, lost


def renamed(names: Iterable[str], moved: Mapping[str, str]) -> dict[str, str]:
    """Names of tensors by the names that they have before their paths are moved.

    >>> renamed(["base_model.model.a.lora_A.weight"], {"a": "b"})
    {'base_model.model.a.lora_A.weight': 'base_model.model.b.lora_A.weight'}
    """
    found = {}
    for name in names:
        pair = pair_of(name)
        path = pair[0] if pair else ""
        found[name] = name
        if path in moved:
            found[name] = PREFIX + moved[path] + name.removeprefix(PREFIX + path)
    return found


def left_out_by_peft(model: Any, paths: Iterable[str]) -> dict[str, str]:
    """Of the paths in a file, those whose pairs peft gives to no layer, and where it looks for one.

    Args:
        model: the base; may be on the meta device.
        paths: what stands before `.lora_A.weight` in the file.
    """
    rules = Renamings.of(model)
    own = {path for path, _ in model.named_modules()}
    own |= {
        f"{path}.base_layer" for path in own
    }  # peft's wrapper of a module with two adapted tensors
    found = {path: read_at(path, rules) for path in paths}
    return {path: at for path, at in found.items() if at != path and at not in own}
