"""The slots' elements: every linear layer of a model's blocks, and the pairs written beside them.

Pairs on experts and other bare parameters are not kept in slots of one rank: they take memory as they
come, and go when other adapters get their slots.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters.model_paths import ranks_for_model, stored_for_model
from lorakit.adapters.pairs import Pair, StoredAdapter, read_stored
from lorakit.adapters.store.contents import signature
from lorakit.errors import AdapterError, did_you_mean
from lorakit.execution.slotted_experts import SlottedExperts
from lorakit.kernels.expert_slots import ExpertPairs
from lorakit.kernels.slots import SlotGroup
from lorakit.lora.called import not_for_text
from lorakit.lora.experts import expert_factors
from lorakit.lora.kinds import Geometry
from lorakit.lora.planning import Target
from lorakit.lora.targets import block_of
from lorakit.lora.variant import Capability, Variant, require_capability
from lorakit.serving.factors import BaseFactors

_REMEMBERED = 4096
"""Adapters of which it is remembered that they were checked."""


@dataclass(frozen=True, eq=False)
class StagedAdapter:
    """An adapter in the form of the slots.

    Attributes:
        width: slots that it takes.
        groups: so many slots of each group of linear layers.
        experts: its pairs on bare parameters, by path.
    """

    width: int
    groups: Sequence[SlotGroup]
    experts: Mapping[str, ExpertPairs] = field(default_factory=dict)


def finite(elements: torch.Tensor) -> bool:
    """Whether all are; a sum is finite only where its terms are, and may overflow where they are."""
    # In its own dtype: told another one, torch takes eleven times as long over bfloat16.
    return math.isfinite(elements.sum()) or bool(elements.isfinite().all())


def check_paths(paths: Collection[str], targets: Collection[str], name: str) -> None:
    """See that an adapter adapts what a server can.

    Raises:
        AdapterError: a path is none of `targets`.
    """
    for path in paths:
        if path not in targets:
            raise AdapterError(
                f"{name} adapts {path}, and a server adapts the linear layers of the blocks and the "
                f"output head only ({did_you_mean(path, targets)}): merge it into a model of its own"
            )


def check_variant(variant: Variant, needs: Collection[Capability], name: str) -> None:
    """See that an adapter's variant can be held.

    Raises:
        AdapterError: it lacks one of the capabilities that are needed.
    """
    merge = "merge it into a model of its own: lorakit merge"
    if Capability.MERGE not in variant.capabilities:
        merge = "lorakit's own engine serves it where the base keeps keys and values"
    for capability in needs:
        require_capability(variant, capability, name, merge)


class Bank:
    """Slots for every linear layer of the blocks, and for the output head.

    Args:
        targets: the layers, from `adaptable`.
        grouped: paths that share their input, group by group; every path once.
        slots: how many adapters (of the slots' rank) there is room for.
        rank: of a slot.
        dtype: of the slots, the base's.
        device: likewise.
        model: the base, by whose paths adapters are known that were trained before its modules moved.
        experts: its bare parameters; None for a base whose parameters get no pairs.
    """

    needs = (Capability.SLOTS,)
    goes_on = True
    """Whether a sequence is computed in pieces, each after what is kept of those before."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        grouped: Sequence[Sequence[str]],
        slots: int,
        rank: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        model: nn.Module | None = None,
        experts: SlottedExperts | None = None,
    ) -> None:
        self._model, self._experts = model, experts
        self._bare: Mapping[str, Geometry] = {} if experts is None else experts.geometries
        self._silent = frozenset[str]() if model is None else not_for_text(model)
        self.targets, self.slots, self.rank = dict(targets), slots, rank
        self._known = self.targets.keys() | self._bare.keys()
        self.dtype, self.device = dtype, device
        self._factors = BaseFactors(model, self.targets)
        self._grouped = [tuple(paths) for paths in grouped]
        assert {path for paths in grouped for path in paths} == self.targets.keys()
        self.groups = [self._group(paths) for paths in self._grouped]
        # Content ids whose files were checked, and what the files were like then.
        self._checked: dict[str, tuple[Any, ...]] = {}

    def _group(self, paths: Sequence[str]) -> SlotGroup:
        shapes = [self.targets[path].geometry for path in paths]
        outs = [shape.out_features for shape in shapes]
        return SlotGroup(
            *(shapes[0].in_features, outs, self.slots, self.rank),
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return sum(group.elements for group in self.groups) * self.groups[0].A.element_size()

    @property
    def expert_bytes(self) -> int:
        """Memory that pairs on all experts take beside one slot, where an adapter has them."""
        elements = 0 if self._experts is None else self._experts.elements(self.rank)
        return elements * self.dtype.itemsize

    @property
    def elements(self) -> float:
        """Of A and B for each unit of rank in a block, as `lora.batched.costs` takes them."""
        blocks = {block_of(path) for path in self.targets} - {None}
        inside = [
            group.elements
            for group, paths in zip(self.groups, self._grouped, strict=True)
            if block_of(paths[0]) is not None
        ]
        return sum(inside) / self.rank / max(1, len(blocks))

    def width(self, ranks: Mapping[str, int], name: str) -> int:
        """Slots that an adapter of these ranks takes.

        Raises:
            AdapterError: it is wider than all slots, or adapts what a server cannot.
        """
        if self._model is not None and not ranks.keys() <= self._known:
            ranks = ranks_for_model(self._model, ranks, self._bare)
        # The pairs of a tower for images change nothing of an answer to text.
        ranks = {path: rank for path, rank in ranks.items() if path not in self._silent}
        if not ranks:
            raise AdapterError(
                f"{name} adapts nothing that runs for text: it would change no answer"
            )
        check_paths(ranks, self._known, name)
        width = -(-max(ranks.values()) // self.rank)
        if width > self.slots:
            raise AdapterError(
                f"{name} has rank {max(ranks.values())}, and {self.slots} slots of rank "
                f"{self.rank} hold {self.slots * self.rank}: give more --slots or a larger "
                "--slot-rank"
            )
        return width

    @property
    def largest_file(self) -> int:
        """Bytes of tensors that could fill all slots in the widest format, and some to spare."""
        return 8 * self.slots * (self.slot_bytes + self.expert_bytes) + (64 << 20)

    def open(self, folder: Path, key: str) -> StagedAdapter:
        """Read and stage the adapter in a folder; see `stage`.

        Everything is checked the first time. As long as the files stay those that were checked,
        later times are a good deal shorter.
        """
        files = signature(folder)
        staged = self.stage(read_stored(folder, check=self._checked.get(key) != files))
        self._checked[key] = files
        while len(self._checked) > _REMEMBERED:
            del self._checked[next(iter(self._checked))]
        return staged

    def stage(self, adapter: StoredAdapter) -> StagedAdapter:
        """An adapter in the slots' form, ready to be copied into them; it touches no slot.

        Raises:
            AdapterError: its variant cannot be served from slots; it does not fit the model, or is not finite in the slots' dtype.
        """
        name = str(adapter.source)
        if self._model is not None and not adapter.pairs.keys() <= self._known:
            adapter = stored_for_model(self._model, adapter, self._bare)
        check_variant(adapter.spec.variant, self.needs, name)
        if Capability.POSITION in adapter.spec.variant.capabilities:
            self._check_position(adapter, name)
        width = self.width({path: pair.rank for path, pair in adapter.pairs.items()}, name)
        if adapter.beside:
            raise AdapterError(
                f"{name} holds more than pairs ({next(iter(adapter.beside))}): merge it into a model of "
                "its own: lorakit merge"
            )
        if adapter.whole:
            raise AdapterError(f"{name} holds whole weights ({', '.join(adapter.whole)})")
        sizes = [width * group.elements for group in self.groups]
        elements = torch.zeros(sum(sizes), dtype=self.dtype, device=self.device)
        places = zip(self.groups, elements.split(sizes), strict=True)
        staged = [mine.beside(place, width) for mine, place in places]
        for group, paths in zip(staged, self._grouped, strict=True):
            pairs = {}
            for path in paths:
                pair = adapter.pairs.get(path)
                if pair is not None and pair.kind not in ("linear", "conv1d"):
                    raise AdapterError(f"{name}: {path} is a pair of the kind {pair.kind}")
                pairs[path] = pair
            try:
                written, factors = self._factors.pairs_of(pairs, adapter.spec.variant)
                group.write(0, width, written, factors)
            except ValueError as error:
                raise AdapterError(f"{name} does not fit this model at {paths}: {error}") from None
        experts = {
            path: self._expert_pairs(path, pair, name)
            for path, pair in adapter.pairs.items()
            if path in self._bare
        }
        held = [tensor for pairs in experts.values() for tensor in (pairs.down, pairs.up)]
        held += [factors.beyond for group in staged for factors in group.factors]
        if not all(finite(tensor) for tensor in (elements, *held)):
            raise AdapterError(f"{name} is not finite in {self.dtype}, which the base is held in")
        return StagedAdapter(width, staged, experts)

    def _check_position(self, adapter: StoredAdapter, name: str) -> None:
        """See that an adapter that acts from a position on can do so here."""
        if not self.goes_on:
            raise AdapterError(
                f"{name} acts from its invocation on, and this model computes a sequence anew at every "
                "step, as one piece: an adapter acts on all of it or on nothing"
            )
        if bare := adapter.pairs.keys() & self._bare.keys():
            raise AdapterError(
                f"{name} acts from its invocation on, and {min(bare)} is no linear layer: it does not see "
                "every token of a row"
            )

    def _expert_pairs(self, path: str, pair: Pair, name: str) -> ExpertPairs:
        """Pairs on a bare parameter, in the slots' dtype, s in the second of each."""
        geometry = self._bare[path]
        shapes = tuple(pair.A.shape), tuple(pair.B.shape)
        if pair.kind != "experts" or shapes != geometry.pair_shapes(pair.rank):
            raise AdapterError(
                f"{name} does not fit this model at {path}: A is {shapes[0]} and B {shapes[1]} "
                f"({pair.kind}), for {geometry.experts} matrices of {geometry.out_features} x "
                f"{geometry.in_features}"
            )
        left, right = expert_factors(pair.A, pair.B * pair.scale, geometry)
        down, up = (left, right) if geometry.swapped else (right.mT, left.mT)
        return ExpertPairs(*(each.to(self.device, self.dtype).contiguous() for each in (down, up)))

    def install(self, slot: int, staged: StagedAdapter) -> None:
        """Copy a staged adapter into slots [slot, slot + width)."""
        for mine, theirs in zip(self.groups, staged.groups, strict=True):
            mine.take(slot, theirs)
        if self._experts is not None:
            self._experts.put(slot, staged.width, staged.experts)
