"""Steps of a model that answers many sequences: by the fastest of three ways that is right.

The lean way and the model's own code compute all sequences in one row on a KV cache of ours; where
neither is right, each sequence is computed apart with the model's own cache (own_caches.py). All add the
step's adapters beside the linear layers. Which of them may be used is found by trying: prompts in
pieces and then token by token, two sequences in turn, must give the logits of each alone.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.execution import attention
from lorakit.execution.cached import cached_layers, step_logits
from lorakit.execution.family import head_path
from lorakit.execution.lean import LeanBlocks
from lorakit.execution.modes import evaluating
from lorakit.execution.own_caches import CALLS, SequencesApart, SequenceStates, Way
from lorakit.execution.runnable import Runnable
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.steps import Place, Step, plan_step
from lorakit.execution.trial import random_ids, same_answer
from lorakit.kernels.slot_plan import BatchPlan
from lorakit.kernels.slots import SlotGroup
from lorakit.lora.planning import Target, plan
from lorakit.lora.spec import ALL_LINEAR, LoraSpec

_log = logging.getLogger("lorakit.execution")


class Blocks(Protocol):
    """What computes the logits of a step."""

    @property
    def grouped(self) -> Sequence[Sequence[str]]:
        """Paths of linear layers that share their input, in the order they run."""

    @property
    def states(self) -> SequenceStates | None:
        """The sequences, where they are not kept in cells of KV caches."""

    @property
    def way(self) -> str:
        """How a step is computed, for the user."""

    def logits(
        self,
        ids_T: Tensor,
        step: Step,
        keep_L: Tensor,
        kv_caches: Sequence[Tensor],
        batch: BatchPlan,
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Take the slots that belong to `grouped`, in its order."""


def adaptable(model: nn.Module) -> dict[str, Target]:
    """The linear layers of a model's blocks by path, as `LoraSpec()` would adapt them."""
    return {target.path: target for target in plan(model, LoraSpec(rank=1)).targets}


def slotted(model: nn.Module) -> dict[str, Target]:
    """The linear layers that slots are kept for: those of the blocks, and the output head, last."""
    path = head_path(model)
    targets = (ALL_LINEAR,) if path is None else (ALL_LINEAR, path)
    layers = {t.path: t for t in plan(model, LoraSpec(rank=1, targets=targets)).targets}
    return layers if path is None else layers | {path: layers.pop(path)}


class OwnBlocks:
    """The model's own code, each linear layer a group of its own, adapters added by forward hooks."""

    states = None
    way = "by the model's own code, all sequences in one row"

    def __init__(self, model: Any, layers: Mapping[nn.Module, AttentionSettings]) -> None:
        self.model, self.layers = model, layers
        self.grouped = [(path,) for path in slotted(model)]
        self._head = head_path(model)
        self.groups: Sequence[SlotGroup] = ()
        self.batch: BatchPlan | None = None

    def use(self, groups: Sequence[SlotGroup]) -> None:
        """Let every linear layer add what is in these slots."""
        self.groups = groups
        for number, (path,) in enumerate(self.grouped):
            module = self.model.get_submodule(path)
            module.register_forward_hook(partial(self._add, number, path == self._head))

    def _add(
        self, group: int, is_head: bool, module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor
    ) -> None:
        batch = self.batch
        if batch is not None and is_head:
            batch = batch.kept
        if batch is not None and batch.segments:
            x = inputs[0]
            rows = y.view(-1, y.shape[-1])
            self.groups[group].add(x.reshape(-1, x.shape[-1]), rows, batch)

    def logits(
        self,
        ids_T: Tensor,
        step: Step,
        keep_L: Tensor,
        kv_caches: Sequence[Tensor],
        batch: BatchPlan,
    ) -> Tensor:
        """(L, vocabulary) at the places `keep_L` of the step."""
        self.batch = batch
        beside = {
            module: (kv_cache, settings)
            for (module, settings), kv_cache in zip(self.layers.items(), kv_caches, strict=True)
        }
        try:
            return step_logits(self.model, ids_T, step, keep_L, beside)
        finally:
            self.batch = None


def open_blocks(model: Any) -> tuple[Blocks, list[AttentionSettings]]:
    """The fastest right way to compute steps, and what the attention modules ask for, in order.

    Args:
        model: from `load_model`, without an adapter.

    Raises:
        ModelError: it cannot be served; the text says why.
    """
    expected, plain = _alone(model), Runnable(model).head is not None
    layers = cached_layers(model)
    lean = LeanBlocks.of(model, layers) if plain else None
    if lean is not None and _same(lean, "lean steps", layers, model, expected):
        return lean, list(layers.values())
    own = OwnBlocks(model, layers)
    if not _same(own, "steps by its own code", layers, model, expected):
        raise ModelError(
            f"{type(model).__name__} cannot be served: with its sequences in one row it answers "
            "otherwise than with each alone. `lorakit generate` answers with it"
        )
    _log.info("%s is served by its own code", type(model).__name__)
    return own, list(layers.values())


def open_steps(model: Any) -> tuple[Blocks, list[AttentionSettings]]:
    """As `open_blocks`; where that cannot be, each sequence apart, which needs no KV caches of ours.

    Args:
        model: from `load_model`, without an adapter.

    Raises:
        ModelError: no way gives the logits that the model gives each sequence alone.
    """
    try:
        return open_blocks(model)
    except ModelError as error:
        _log.info("%s", error)
    if not Runnable(model).packs:
        attention.switch_back(model)
    return open_apart(model), []


def open_apart(model: Any) -> SequencesApart:
    """The fastest right way to compute each sequence apart.

    Raises:
        ModelError: none is right: the model answers otherwise each time it is asked.
    """
    expected, paths = _alone(model, _APART), list(slotted(model))
    for way in Way:
        for call in CALLS if way is not Way.ROWS else CALLS[:1]:
            blocks = SequencesApart(model, paths, way, call)
            if _same(blocks, f"{way.value}, {call}", {}, model, expected, _APART):
                _log.info("%s is served sequence by sequence, %s", type(model).__name__, way.value)
                return SequencesApart(model, paths, way, call)
    raise ModelError(
        f"{type(model).__name__} cannot be served: asked twice for the same tokens, it gives other "
        "logits"
    )


_Counts = tuple[tuple[int, ...], tuple[int, ...]]
_TRIAL: _Counts = ((3, 2, 1, 1), (6, 4, 1, 1))
"""Two sequences: how many tokens of each come in each step. A piece of the prompt, the rest of it,
two single tokens; the logits of all but the first step are compared."""
_APART: _Counts = ((5, 14, 1, 1), (23, 9, 1, 1))
"""The same for sequences apart: longer, since a cache of the model's own may hold few tokens."""


def _trial_ids(model: Any, counts: _Counts) -> list[Tensor]:
    return list(random_ids(model, sum(map(sum, counts))).split([sum(n) for n in counts]))


@torch.no_grad()
def _alone(model: Any, counts: _Counts = _TRIAL) -> Tensor:
    """Logits after each step of the trial but the first, each sequence alone, (sequences·3, V)."""
    with evaluating(model):
        return torch.cat(
            [model(ids[None], use_cache=False).logits[0, -3:] for ids in _trial_ids(model, counts)]
        )


def _same(
    blocks: Blocks,
    way: str,
    layers: Mapping[nn.Module, AttentionSettings],
    model: Any,
    expected: Tensor,
    counts: _Counts = _TRIAL,
) -> bool:
    """Whether prompts in pieces and then token by token, in turn, give those logits."""

    @torch.inference_mode()
    def steps() -> Tensor:
        size = size_of_trial(counts)
        kv_caches = [
            torch.zeros(
                2 * size, 2, x.key_heads, x.cell_width, dtype=model.dtype, device=model.device
            )
            for x in layers.values()
        ]
        sequences, logits, past = _trial_ids(model, counts), [], (0, 0)
        for step_counts in zip(*counts, strict=True):
            places = [Place(i * size, size, past[i], step_counts[i]) for i in (0, 1)]
            ids_T = torch.cat([sequences[i][past[i] : past[i] + step_counts[i]] for i in (0, 1)])
            keep_L = torch.tensor([step_counts[0] - 1, len(ids_T) - 1], device=model.device)
            batch = BatchPlan(len(ids_T), (), frozenset())
            step = plan_step(places, model.device)
            logits.append(blocks.logits(ids_T, step, keep_L, kv_caches, batch))
            past = (past[0] + step_counts[0], past[1] + step_counts[1])
        return torch.stack(logits[1:], dim=1).flatten(0, 1)

    with evaluating(model):
        return same_answer(model, way, steps, expected)


def size_of_trial(counts: _Counts) -> int:
    """Cells of a sequence of the trial, a power of two."""
    return 1 << (max(map(sum, counts)) - 1).bit_length()
