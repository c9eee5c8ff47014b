"""Pairs on experts by the tensors of a model's files, which may keep each expert's matrices one by one.

transformers stacks them while it loads (`stacked_in_model`). A file's matrix of one expert takes that
expert's own pair: of gate and up, which stand in one parameter in the model, each its rows of B.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorakit.adapters.pairs import Pair
from lorakit.files.header import StoredTensor
from lorakit.lora import Plan, Target
from lorakit.lora.kinds import Geometry
from lorakit.models.weights import OtherNamesError, find, stacked_in_model

_EXPERT = re.compile(r"\.(\d+)\.[^.]+\.weight$")


@dataclass(frozen=True, eq=False)
class FilePairs:
    """An adapter by the tensors of a model's files.

    Attributes:
        plan: a target for each tensor that is merged.
        pairs: by the targets' paths.
        places: where each lies: `PATH.weight` of a layer, the path itself of a bare parameter.
    """

    plan: Plan
    pairs: Mapping[str, Pair]
    places: Mapping[str, StoredTensor]


def by_files(
    model: Any,
    plan: Plan,
    pairs: Mapping[str, Pair],
    held: Mapping[str, StoredTensor],
) -> FilePairs:
    """Find the tensors that an adapter changes.

    Args:
        model: the base, a transformers model, on the meta device if need be.
        plan: of the adapter on it.
        pairs: by path.
        held: the tensors of its files.

    Raises:
        OtherNamesError: a parameter is in the files neither by itself nor as matrices of all its experts.
        ModelError: the files' tensor has another shape.
    """
    dense = [target for target in plan.targets if target.geometry.kind != "experts"]
    known = dict(model.named_parameters(remove_duplicate=False))
    beside = [name for each in plan.whole for name in each.names if name in known]
    places = find(model, [*(f"{target.path}.weight" for target in dense), *beside], held)
    if len(dense) == len(plan.targets):
        return FilePairs(plan, pairs, places)
    stacked = stacked_in_model(model, held)
    targets, found = [], dict(pairs)
    for target in plan.targets:
        if target in dense:
            targets.append(target)
            continue
        try:
            places |= find(model, [target.path], held)
        except OtherNamesError:
            pair = found.pop(target.path)
            names = {name: at for name, at in stacked.items() if at.target == target.path}
            parts = {at.parts for at in names.values()}
            if len(names) != target.geometry.experts * max(parts, default=1):
                raise
            for name, at in names.items():
                expert = _EXPERT.search(name)
                assert expert is not None
                one = _of_part(pair.each[int(expert[1])], at.part, at.parts)
                path = name.removesuffix(".weight")
                targets.append(_layer(target, path, one))
                found[path], places[name] = one, held[name]
        else:
            targets.append(target)
    return FilePairs(replace(plan, targets=tuple(targets)), found, places)


def _of_part(pair: Pair, part: int, parts: int) -> Pair:
    rows = len(pair.B) // parts
    return replace(pair, B=pair.B[part * rows : (part + 1) * rows])


def _layer(target: Target, path: str, pair: Pair) -> Target:
    geometry = Geometry("linear", pair.A.shape[1], len(pair.B))
    return replace(target, path=path, geometry=geometry, frozen=0)
