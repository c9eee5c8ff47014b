"""An adapter out of two full models: the best pairs for W' - W, layer by layer.

    W' - W ≈ B·A      A and B from the first singular values of W' - W (Eckart and Young, 1936)

One layer is in memory at a time; both folders are read by rows. What else differs between the two
models (norms, embeddings, biases) has no pair and is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.naming import describe_targets
from lorakit.adapters.pairs import Pair, StoredAdapter, rounded, unit_pair
from lorakit.adapters.parents import unit_spec
from lorakit.adapters.peft_config import PeftConfig
from lorakit.adapters.provenance import Identity, make_record
from lorakit.errors import AdapterError, TargetError
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.lora import Target, spectrum
from lorakit.lora.limits import check_cut


@dataclass(frozen=True)
class LayerResidual:
    """One adapted layer.

    Attributes:
        path: of the module.
        rank: of its pair.
        norm: ‖W' - W‖ (Frobenius).
        relative: ‖W' - W‖ / ‖W‖.
        lost: ‖W' - W - B·A‖ / ‖W' - W‖.
    """

    path: str
    rank: int
    norm: float
    relative: float
    lost: float


@dataclass(frozen=True)
class Left:
    """A tensor that differs between the models and has no pair."""

    name: str
    norm: float
    relative: float


@dataclass(frozen=True, eq=False)
class Extracted:
    """An adapter made of two models.

    Attributes:
        adapter: not written yet; its record has the residual of each layer.
        layers: one for each adapted layer, in the model's order.
        unchanged: paths of targets that are equal in both models, which get no pair.
        left: what differs and is not adapted.
    """

    adapter: StoredAdapter
    layers: tuple[LayerResidual, ...]
    unchanged: tuple[str, ...]
    left: tuple[Left, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def lost(self) -> float:
        """‖wanted - made‖ / ‖wanted‖ over all adapted layers together."""
        missed = sum((layer.lost * layer.norm) ** 2 for layer in self.layers)
        return float((missed / sum(layer.norm**2 for layer in self.layers)) ** 0.5)


def extract(
    targets: Sequence[Target],
    modules: Sequence[str],
    base: Mapping[str, StoredTensor],
    tuned: Mapping[str, StoredTensor],
    *,
    rank: int | None,
    energy: float | None,
    identity: Identity,
    tuned_identity: Identity,
    task_type: str | None = "CAUSAL_LM",
    dtype: torch.dtype = torch.float32,
    taken: tuple[str, ...] = (),
    moved: Mapping[str, str] | None = None,
) -> Extracted:
    """Make the adapter.

    Args:
        targets: what gets a pair, see `lorakit.lora.plan`.
        modules: paths of all modules of the model.
        base, tuned: where every parameter lies, by its name in the model.
        rank: at most this for each layer.
        energy: as few singular values as hold this share of a layer's squared difference.
        identity: of the base; the adapter belongs to it.
        tuned_identity: of the tuned model, for the record.
        task_type: peft's name of the task.
        dtype: of A and B.
        taken, moved: see `PeftConfig`.

    Raises:
        ConfigError: neither rank nor energy, or one out of range.
        TargetError: a grouped convolution.
        AdapterError: no target differs.
    """
    check_cut(rank, energy)
    pairs: dict[str, Pair] = {}
    layers: list[LayerResidual] = []
    unchanged: list[str] = []
    for target in targets:
        name = f"{target.path}.weight"
        W, difference = _difference(target, base[name], tuned[name])
        if not difference.any():
            unchanged.append(target.path)
            continue
        pair, layer = _layer(target, W, difference, rank, energy)
        pairs[target.path] = rounded(pair, dtype)
        layers.append(layer)
    if not pairs:
        raise AdapterError(
            f"{tuned_identity.name} and {identity.name} are equal in all {len(unchanged)} targets: "
            "there is nothing to extract"
        )
    adapted = {f"{path}.weight" for path in pairs}
    left = tuple(_left(n, base[n], tuned[n]) for n in base if n not in adapted)
    left = tuple(item for item in left if item.norm != 0.0)
    named = describe_targets(list(pairs), modules)
    spec = unit_spec({path: pair.rank for path, pair in pairs.items()}, named)
    config = PeftConfig(
        spec,
        named,
        base_name=identity.name,
        revision=identity.revision,
        task_type=task_type,
        fan_in_fan_out=all(pair.kind == "conv1d" for pair in pairs.values()),
        taken=taken,
        moved=moved or {},
    )
    provenance: dict[str, Any] = {
        "method": {"name": "extract", "rank": rank, "energy": energy},
        "tuned": tuned_identity.to_dict(),
        "layers": [vars(layer) for layer in layers],
        "not_adapted": [vars(item) for item in left],
    }
    record = make_record(spec, "", identity.to_dict(), provenance)
    adapter = StoredAdapter(Path("extract"), config, record, pairs)
    return Extracted(adapter, tuple(layers), tuple(unchanged), left, _rounding(base, tuned))


def _difference(target: Target, base: StoredTensor, tuned: StoredTensor) -> tuple[float, Tensor]:
    """‖W‖, and W' - W in float64 as (out, in…)."""
    if target.geometry.groups > 1:
        raise TargetError(f"{target.path} is a convolution with groups: leave it out with exclude")
    rows = base.entry.shape[0]
    W = shards.read_rows(base, 0, rows).double()
    difference = shards.read_rows(tuned, 0, rows).double() - W
    if target.geometry.transposed or target.geometry.kind == "embedding":
        difference = difference.T
    return float(W.norm()), difference


def _layer(
    target: Target, W: float, difference: Tensor, rank: int | None, energy: float | None
) -> tuple[Pair, LayerResidual]:
    U, S, Vh = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    k = spectrum.kept(S, rank=rank, energy=energy)
    like_A, like_B = (torch.empty(shape, device="meta") for shape in target.geometry.pair_shapes(1))
    A, B = spectrum.factors(U, S, Vh, k, like_A, like_B)
    norm = float(S.norm())
    lost = float(S[k:].norm()) / norm
    relative = norm / W if W else float("inf")
    layer = LayerResidual(target.path, k, norm, relative, lost)
    return unit_pair(A, B, target.geometry.kind), layer


def _left(name: str, base: StoredTensor, tuned: StoredTensor) -> Left:
    """How far a tensor without a pair is from the base's."""
    size = difference = 0.0
    if not base.entry.shape:
        first, second = shards.read_whole(base).double(), shards.read_whole(tuned).double()
        size, difference = float(first.square()), float((second - first).square())
    for start, stop in shards.blocks(base.entry.shape) if base.entry.shape else ():
        first = shards.read_rows(base, start, stop).double()
        second = shards.read_rows(tuned, start, stop).double()
        size += float(first.square().sum())
        difference += float((second - first).square().sum())
    relative = (difference / size) ** 0.5 if size else float("inf")
    return Left(name, difference**0.5, relative if difference else 0.0)


def _rounding(
    base: Mapping[str, StoredTensor], tuned: Mapping[str, StoredTensor]
) -> tuple[str, ...]:
    """Said where the models are kept in different formats: rounding is then part of W' - W."""
    kinds = [{place.entry.dtype for place in places.values()} for places in (base, tuned)]
    if kinds[0] == kinds[1]:
        return ()
    words = [" and ".join(sorted(kind)) for kind in kinds]
    return (
        f"the base is kept in {words[0]} and the tuned model in {words[1]}: the rounding of the "
        "narrower one is part of every difference, and no low rank holds it",
    )
