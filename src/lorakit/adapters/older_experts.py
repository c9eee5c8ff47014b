"""Pairs on single experts, of the transformers that kept each as a module -> pairs on all experts at once.

    …experts.3.w1, …experts.3.w3   ->  …experts.gate_up_proj   A_e = (A_w1; A_w3)   B_e = diag(B_w1, B_w3)
    …experts.3.w2                  ->  …experts.down_proj
    …gate, a linear layer          ->  …gate.weight, a bare parameter

Which matrices stand together, and in which order, is read off the rules by which transformers converts a
checkpoint for the model. An expert without a pair, and ranks that differ, are filled with zeros; scales
that differ are moved into B. peft (0.21) does the same for adapters of one rank and scale that adapt all
parts of a matrix, and refuses or misreads others.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorakit.adapters.pairs import Pair, StoredAdapter
from lorakit.adapters.peft_config import PeftConfig, compact
from lorakit.errors import AdapterError
from lorakit.lora.kinds import Geometry, kind_of
from lorakit.lora.parameters import bare_parameters, expert_geometry
from lorakit.models.weights import stacked_in_model

_EXPERT = re.compile(r"\.(\d+)\.[^.]+$")


@dataclass(frozen=True)
class ExpertPart:
    """What one older pair is now.

    Attributes:
        target: path of the bare parameter.
        geometry: of that.
        expert: whose matrix it is.
        part, parts: which share of the matrix's rows.
    """

    target: str
    geometry: Geometry
    expert: int = 0
    part: int = 0
    parts: int = 1


Bare = Mapping[str, Geometry]
"""What pairs can stand on beside modules, by path, in the order of the modules that own them."""


def bare_geometries(model: nn.Module) -> dict[str, Geometry]:
    """The bare parameters of a model."""
    own = {path: at for path, at in bare_parameters(model).items() if not kind_of(at[0])}
    return {path: expert_geometry(*at) for path, at in own.items()}


def older_parts(
    model: nn.Module, paths: Iterable[str], bare: Bare | None = None
) -> dict[str, ExpertPart]:
    """Those of an adapter's paths that are parts of bare parameters in a model, and which.

    Args:
        model: the base; may be on the meta device.
        paths: of modules, as the adapter has them.
        bare: its bare parameters, where something else stands in their places.
    """
    modules = dict(model.named_modules())
    lost = [path for path in paths if path not in modules or not kind_of(modules[path])]
    if not lost:
        return {}
    bare = bare_geometries(model) if bare is None else bare
    stacked = stacked_in_model(model, [f"{path}.weight" for path in lost if path not in modules])
    parts: dict[str, ExpertPart] = {}
    for path in lost:
        name, expert = f"{path}.weight", _EXPERT.search(path)
        place = stacked.get(name)
        if place is not None and place.target in bare and expert is not None:
            parts[path] = ExpertPart(
                *(place.target, bare[place.target], int(expert[1]), place.part, place.parts)
            )
        elif name in bare and bare[name].experts == 1:
            parts[path] = ExpertPart(name, bare[name])
    # In the order in which modules keep their parameters, which the names in a file depend on.
    order = {path: number for number, path in enumerate(bare)}
    return dict(sorted(parts.items(), key=lambda item: order[item[1].target]))


def present_ranks(
    model: nn.Module, ranks: Mapping[str, int], bare: Bare | None = None
) -> dict[str, int]:
    """Ranks by the paths that a model has now.

    Args:
        model, bare: as for `older_parts`.
        ranks: by path, as an adapter has them.
    """
    parts = older_parts(model, ranks, bare)
    widest: dict[str, dict[int, int]] = {}
    for path, place in parts.items():
        own = widest.setdefault(place.target, {})
        own[place.part] = max(own.get(place.part, 0), ranks[path])
    dense = {path: rank for path, rank in ranks.items() if path not in parts}
    return dense | {path: sum(own.values()) for path, own in widest.items()}


def with_present_experts(
    model: nn.Module, adapter: StoredAdapter, bare: Bare | None = None
) -> StoredAdapter:
    """An adapter by the parameters that a model has now; itself where it has no older pairs.

    Args:
        model, bare: as for `older_parts`.
        adapter: its other paths are the model's.

    Raises:
        AdapterError: a pair does not fit its place, or its variant keeps more than A and B.
    """
    parts = older_parts(model, adapter.pairs, bare)
    if not parts:
        return adapter
    name = str(adapter.source)
    grouped: dict[str, dict[str, ExpertPart]] = {}
    for path, place in parts.items():
        grouped.setdefault(place.target, {})[path] = place
    fused = {
        target: _fused(name, adapter, {path: adapter.pairs[path] for path in own}, own)
        for target, own in grouped.items()
    }
    pairs = {path: pair for path, pair in adapter.pairs.items() if path not in parts} | fused
    old = next(iter(parts))
    notes = [
        f"{len(parts)} pairs are on modules that transformers has put into parameters of all experts "
        f"since, such as {old}, which is part of {parts[old].target} now; they are read as pairs on those"
    ]
    if adapter.spec.dropout:
        notes.append(
            f"dropout {adapter.spec.dropout:g} is left out: pairs on such parameters have none, in peft too"
        )
    config = _present_config(adapter.config, pairs)
    return replace(adapter, config=config, pairs=pairs, notes=(*adapter.notes, *notes))


def _fused(
    name: str, adapter: StoredAdapter, pairs: Mapping[str, Pair], places: Mapping[str, ExpertPart]
) -> Pair:
    """One pair for all experts of a parameter."""
    first = next(iter(places.values()))
    geometry, parts = first.geometry, first.parts
    outs = geometry.out_features // parts
    ranks = [0] * parts
    for path, pair in pairs.items():
        place = places[path]
        fits = pair.A.shape[1:] == (geometry.in_features,) and pair.B.shape[:1] == (outs,)
        if not fits or pair.kind != "linear" or place.expert >= geometry.experts:
            raise AdapterError(
                f"{name}: A of {path} is {tuple(pair.A.shape)} and B {tuple(pair.B.shape)}, and the "
                f"model's {place.target} has {geometry.experts} matrices of {outs} x "
                f"{geometry.in_features} there"
            )
        if pair.more:
            raise AdapterError(
                f"{name} keeps {', '.join(pair.more)} beside A and B of {path}, which has no place "
                f"beside {place.target}, where the model keeps all experts in one parameter: merge it "
                "with the transformers that it was trained with"
            )
        ranks[place.part] = max(ranks[place.part], pair.rank)
    scale = max((pair.scale for pair in pairs.values()), key=abs)
    rank, dtype = sum(ranks), next(iter(pairs.values())).A.dtype
    A_ERI = torch.zeros(geometry.experts, rank, geometry.in_features, dtype=dtype)
    B_ORE = torch.zeros(geometry.out_features, rank, geometry.experts, dtype=dtype)
    for path, pair in pairs.items():
        place = places[path]
        row = sum(ranks[: place.part])
        rows = slice(row, row + pair.rank)
        A_ERI[place.expert, rows] = pair.A
        B = pair.B if pair.scale == scale else pair.B * (pair.scale / scale)
        B_ORE[place.part * outs : (place.part + 1) * outs, rows, place.expert] = B
    alpha = scale / adapter.spec.variant.scale(1.0, rank)
    return Pair(_flat(A_ERI, 0), _flat(B_ORE, 1), alpha, scale, "experts", experts=geometry.experts)


def _flat(tensor: Tensor, axis: int) -> Tensor:
    return tensor.flatten(axis, axis + 1).contiguous()


def _present_config(config: PeftConfig, pairs: Mapping[str, Pair]) -> PeftConfig:
    """The configuration of these pairs, each named by its whole path."""
    dense = tuple(path for path, pair in pairs.items() if not pair.experts)
    bare = tuple(path for path, pair in pairs.items() if pair.experts)
    rank, ranks = compact({path: pair.rank for path, pair in pairs.items()})
    alpha, alphas = compact({path: pair.alpha for path, pair in pairs.items()})
    spec = replace(
        config.spec,
        rank=int(rank),
        alpha=float(alpha),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern=alphas,
        targets=dense,
        target_parameters=bare,
        dropout=0.0,
    )
    return replace(
        config,
        spec=spec,
        target_modules=dense,
        exclude=(),
        layers=None,
        layers_pattern=(),
        target_parameters=bare,
    )
