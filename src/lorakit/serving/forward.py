"""A base made ready to serve: what computes a step, its KV cache and the adapters' slots."""

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.own_caches import SequencesApart, Way, measured_bytes
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.slotted_experts import SlottedExperts
from lorakit.execution.stepping import Blocks, open_steps, slotted
from lorakit.execution.steps import Place, plan_step
from lorakit.kernels.slot_plan import Costs, SlotRun, costs, plan_batch, runs_of
from lorakit.serving.bank import Bank
from lorakit.serving.cache import Reuse, size_for
from lorakit.serving.room import Room, room_in_cells, room_of_states
from lorakit.serving.spec import EngineSpec


class Forward:
    """A base made ready to serve: its blocks, the layers' KV caches and the adapters' slots.

    Args:
        blocks: what computes.
        layers: the attention modules, in the order they run.
        model: the base.
        spec: limits.
        room: for sequences.
    """

    def __init__(
        self,
        blocks: Blocks,
        layers: Sequence[AttentionSettings],
        model: Any,
        spec: EngineSpec,
        room: Room,
    ) -> None:
        self.blocks, self.device, self.room = blocks, model.device, room
        self.experts = SlottedExperts(model)
        if blocks.states is None:
            self.experts.try_together(blocks, layers)
        self.bank = Bank(
            *(slotted(model), blocks.grouped, spec.slots, spec.slot_rank),
            dtype=model.dtype,
            device=model.device,
            model=model,
            experts=self.experts,
        )
        self.bank.goes_on = room.reuse != "none"
        blocks.use(self.bank.groups)
        self.costs: Costs = costs(model.device, model.dtype, self.bank.elements, self.bank.rank)
        self.kv_caches = [
            torch.zeros(
                room.positions,
                2,
                layer.key_heads,
                layer.cell_width,
                dtype=model.dtype,
                device=model.device,
            )
            for layer in layers
        ]

    @torch.inference_mode()
    def run(
        self,
        ids: Sequence[int],
        places: Sequence[Place],
        keep: Sequence[int],
        runs: Sequence[SlotRun],
    ) -> Tensor:
        """Logits of a step, (len(keep), vocabulary); keys and values go to the KV caches.

        Args:
            ids: tokens, sequence after sequence, sorted by slot, the base's last.
            places: the sequences, in that order.
            keep: the tokens whose logits are wanted.
            runs: of adapters, see `lora.batched`.
        """
        alone = self.experts.parts(runs)
        if not alone:
            return self._run(ids, places, keep, runs)
        logits = torch.empty(0)
        for part in step_parts(places, runs, alone):
            where = [number for number, token in enumerate(keep) if token in part.tokens]
            kept = [part.tokens.index(keep[number]) for number in where]
            with nullcontext() if part.slot is None else self.experts.alone(part.slot):
                rows = self._run([ids[t] for t in part.tokens], part.places, kept, part.runs)
            if not len(logits):
                logits = rows.new_empty(len(keep), rows.shape[-1])
            logits[where] = rows
        return logits

    def _run(
        self,
        ids: Sequence[int],
        places: Sequence[Place],
        keep: Sequence[int],
        runs: Sequence[SlotRun],
    ) -> Tensor:
        step = plan_step(places, self.device)
        batch = plan_batch(tuple(runs), len(ids), self.device, self.costs)
        kept = plan_batch(runs_of(runs, keep), len(keep), self.device, self.costs)
        ids_T = torch.tensor(ids, device=self.device)
        keep_L = torch.tensor(keep, dtype=torch.long, device=self.device)
        with self.experts.together(batch):
            return self.blocks.logits(
                ids_T, step, keep_L, self.kv_caches, replace(batch, kept=kept)
            )

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        """Copy what is kept of the `count` tokens of one block to another."""
        for kv_cache in self.kv_caches:
            kv_cache[target : target + count] = kv_cache[source : source + count]
        if self.blocks.states is not None:
            self.blocks.states.copy(source, target, count)

    @torch.inference_mode()
    def wipe(self, start: int, size: int) -> None:
        """Zero cells that may hold what is not finite, so that nobody meets it."""
        for kv_cache in self.kv_caches:
            kv_cache[start : start + size] = 0
        if self.blocks.states is not None:
            self.blocks.states.forget(start)

    def retain(self, starts: AbstractSet[int]) -> None:
        """Free what is kept of sequences apart whose block is gone."""
        if self.blocks.states is not None:
            self.blocks.states.retain(starts)


@dataclass(frozen=True)
class StepPart:
    """Tokens of a step that are computed as a step of their own.

    Attributes:
        tokens: which of the whole step's, ascending.
        places: their sequences.
        runs: the adapters among them.
        slot: of the one adapter whose pairs the model's own code reads; None where there is none.
    """

    tokens: Sequence[int]
    places: Sequence[Place]
    runs: Sequence[SlotRun]
    slot: int | None


def step_parts(
    places: Sequence[Place], runs: Sequence[SlotRun], alone: Collection[SlotRun]
) -> list[StepPart]:
    """A step cut into parts: one for each run of `alone`, and one for all the rest.

    Args:
        places: the sequences of the step, in the order of its tokens.
        runs: of adapters; their tokens come first.
        alone: some of them.
    """
    owners = [run for run in runs for _ in range(run.rows)]
    first, mine = 0, list[tuple[SlotRun | None, list[int], Place]]()
    for place in places:
        owner = owners[first] if first < len(owners) else None
        mine.append((owner, list(range(first, first + place.count)), place))
        first += place.count
    parts = []
    for run in (*alone, None):
        own = [each for each in mine if (each[0] if each[0] in alone else None) == run]
        if own:
            tokens = [token for _, some, _ in own for token in some]
            others = [each for each in runs if each not in alone]
            held, slot = ([run], run.slot) if run is not None else (others, None)
            parts.append(StepPart(tokens, [place for *_, place in own], held, slot))
    return parts


def cell_bytes(layers: Sequence[AttentionSettings], dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers."""
    return sum(2 * layer.key_heads * layer.cell_width for layer in layers) * dtype.itemsize


_MEASURED = 64
"""Tokens of the sequence whose state is measured."""


def open_forward(model: Any, spec: EngineSpec, longest: int) -> Forward:
    """Make a base ready, by the fastest way that a trial says is right.

    The model belongs to the server from then on: its linear layers add what is in the slots.

    Args:
        model: from `load_model`, without an adapter.
        spec: limits.
        longest: tokens of the longest sequence.

    Raises:
        ModelError: it cannot be served; the text says why.
        ConfigError: the cache is smaller than one sequence.
    """
    blocks, layers = open_steps(model, longest)
    largest = size_for(longest)
    if isinstance(blocks, SequencesApart):
        bytes_of = measured_bytes(blocks, [0] * min(_MEASURED, largest))
        reuse: Reuse = "whole" if blocks.kind is Way.CONTINUED else "none"
        room = room_of_states(spec, bytes_of, largest, reuse)
    else:
        room = room_in_cells(spec, cell_bytes(layers, model.dtype), largest)
    return Forward(blocks, layers, model, spec, room)
