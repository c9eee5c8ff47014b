"""Steps of a model that answers many sequences: by the fastest of three ways that is right.

The lean way and the model's own code compute all sequences in one row on a KV cache of ours; where
neither is right, each sequence is computed apart with the model's own cache (own_caches.py). All add the
step's adapters beside the linear layers. Which of them may be used is found by trying: prompts in
pieces and then token by token, two sequences in turn, must give the logits of each alone.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.errors import ModelError
from lorakit.execution import attention
from lorakit.execution.cached import cached_layers, step_logits
from lorakit.execution.equals import chooses_among_equals
from lorakit.execution.family import head_path
from lorakit.execution.lean import LeanBlocks
from lorakit.execution.lengths import limits_of
from lorakit.execution.modes import evaluating
from lorakit.execution.own_caches import (
    CALLS,
    Call,
    SequencesApart,
    SequenceStates,
    Way,
    last_logits,
)
from lorakit.execution.prompts import with_padding_token
from lorakit.execution.runnable import Runnable
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.steps import Place, Step, plan_step
from lorakit.execution.trial import LENGTHS, random_ids, same_answer
from lorakit.execution.trial_memory import asked_once
from lorakit.kernels.slot_plan import BatchPlan
from lorakit.kernels.slots import SlotGroup
from lorakit.lora.parameters import routers_of
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
    """The linear layers of a model's blocks by path, those that choose among experts included."""
    routers = sorted(routers_of(dict(model.named_modules())))
    spec = LoraSpec(rank=1, targets=(ALL_LINEAR, *(f"re:{re.escape(path)}" for path in routers)))
    return {target.path: target for target in plan(model, spec).targets}


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


def open_blocks(model: Any, longest: int = 0) -> tuple[Blocks, list[AttentionSettings]]:
    """The fastest right way to compute steps in one row, and what the attention modules ask for, in order.

    Args:
        model: from `load_model`, without an adapter.
        longest: tokens of the longest sequence. Every limit of the configuration (lengths.py) that
            so long a sequence crosses is crossed by a trial.

    Raises:
        ModelError: there is none, or the model sees later tokens; the text says why.
    """
    plain = Runnable(model).head is not None
    trials = _trials(model, longest, _SHORT)
    switched = attention.is_switched(model)
    try:
        layers = cached_layers(model)
        lean = LeanBlocks.of(model, layers) if plain else None
        if lean is not None and _right(lean, f"lean steps {lean.way}", trials, layers):
            return lean, list(layers.values())
        own = OwnBlocks(model, layers)
        if not _right(own, "steps by its own code", trials, layers):
            raise ModelError(
                f"{type(model).__name__} cannot be served with its sequences in one row: it answers "
                "otherwise than with each alone. `lorakit generate` answers with it"
            )
    except ModelError:
        if not switched:
            attention.switch_back(model)
        raise
    _log.info("%s is served by its own code", type(model).__name__)
    return own, list(layers.values())


def open_steps(model: Any, longest: int) -> tuple[Blocks, list[AttentionSettings]]:
    """As `open_blocks`; where that cannot be, each sequence apart, which needs no KV caches of ours.

    Args:
        model, longest: as for `open_blocks`.

    Raises:
        ModelError: the model sees later tokens, or answers otherwise each time it is asked.
    """
    Runnable(model)  # what is wrong with the model itself is raised here
    try:
        return open_blocks(model, longest)
    except ModelError as error:
        _log.info("%s", error)
    return open_apart(model, longest), []


def open_apart(model: Any, longest: int, paths: Sequence[str] | None = None) -> SequencesApart:
    """The fastest right way to compute each sequence apart.

    Args:
        model, longest: as for `open_blocks`.
        paths: linear layers that adapters may add to; those that slots are kept for if left out.

    Raises:
        ModelError: none is right: the model answers otherwise each time it is asked.
    """
    name, paths = type(model).__name__, list(slotted(model)) if paths is None else paths
    for way in (Way.CONTINUED, Way.PROMPTS):
        trials = _trials(model, longest, _APART, in_pieces=way is Way.CONTINUED)
        for call in CALLS:
            if _right(SequencesApart(model, paths, way, call), f"{way.value}, {call}", trials):
                _log.info("%s is computed sequence by sequence, %s", name, way.value)
                return SequencesApart(model, paths, way, call)
    # Rows computed anew are what the others are held against; they can only differ from themselves.
    ids_T = random_ids(model, sum(_APART[1]))
    with torch.no_grad(), evaluating(model):
        once = last_logits(model, ids_T, 1)
        if not same_answer(model, "asked again", lambda: last_logits(model, ids_T, 1), once):
            raise ModelError(f"{name} draws at random when it answers: take a model that does not")
    return SequencesApart(model, paths, Way.ROWS, Call())


_Counts = tuple[tuple[int, ...], tuple[int, ...]]
_SHORT: _Counts = ((3, 2, 1, 1), (6, 4, 1, 1))
"""Two sequences: how many tokens of each come in each step. A piece of the prompt, the rest of it,
two single tokens; the logits of all but the first step are compared."""
_APART: _Counts = ((5, 14, 1, 1), (23, 9, 1, 1))
"""The same for sequences apart: longer, since a cache of the model's own may hold few tokens."""


def _trials(model: Any, longest: int, short: _Counts, *, in_pieces: bool = True) -> "list[_Trial]":
    """A short trial, and one for each limit of the configuration that `longest` tokens cross: with the
    second piece of a prompt, or else with single tokens after a whole one."""
    counts = [short]
    for limit in limits_of(model.config):
        if 2 < limit < longest:
            crossing = (limit - 2, 5, 1, 1) if in_pieces else (limit - 1, 1, 1, 1)
            counts.append((short[0], crossing))
    return [_Trial(model, each) for each in counts]


def _right(
    blocks: Blocks,
    way: str,
    trials: "Sequence[_Trial]",
    layers: Mapping[nn.Module, AttentionSettings] | None = None,
) -> bool:
    return asked_once(
        trials[0].model,
        f"{way}, two sequences in steps of {[trial.counts for trial in trials]} tokens",
        lambda: all(trial.passed(blocks, way, layers or {}) for trial in trials),
    )


class _Trial:
    """Two sequences in pieces and then token by token, in turn, against each alone as a whole row.

    Args:
        model: the base.
        counts: tokens of each sequence in each step.
    """

    def __init__(self, model: Any, counts: _Counts) -> None:
        self.model, self.counts = model, counts
        lengths = [sum(each) for each in counts]
        self.longest = max(lengths)
        ids = random_ids(model, sum(lengths)).split(lengths)
        self.sequences = [with_padding_token(model, ids_N) for ids_N in ids]

    @cached_property
    def expected(self) -> Tensor:
        """The logits that follow the last three tokens of each sequence, in its whole row."""
        with torch.no_grad(), evaluating(self.model):
            return torch.cat([last_logits(self.model, ids, 3) for ids in self.sequences])

    def passed(
        self, blocks: Blocks, way: str, layers: Mapping[nn.Module, AttentionSettings]
    ) -> bool:
        """Whether a way gives the expected logits."""
        if self.longest > max(LENGTHS) and chooses_among_equals(self.model, self.longest):
            return False
        with evaluating(self.model):
            return same_answer(self.model, way, lambda: self._steps(blocks, layers), self.expected)

    @torch.inference_mode()
    def _steps(self, blocks: Blocks, layers: Mapping[nn.Module, AttentionSettings]) -> Tensor:
        model, size = self.model, 1 << (self.longest - 1).bit_length()
        kv_caches = [
            torch.zeros(
                2 * size, 2, x.key_heads, x.cell_width, dtype=model.dtype, device=model.device
            )
            for x in layers.values()
        ]
        logits, past = [], (0, 0)
        for counts in zip(*self.counts, strict=True):
            places = [Place(i * size, size, past[i], counts[i]) for i in (0, 1)]
            ids_T = torch.cat([self.sequences[i][past[i] : past[i] + counts[i]] for i in (0, 1)])
            keep_L = torch.tensor([counts[0] - 1, len(ids_T) - 1], device=model.device)
            batch = BatchPlan(len(ids_T), (), frozenset())
            step = plan_step(places, model.device)
            logits.append(blocks.logits(ids_T, step, keep_L, kv_caches, batch))
            past = (past[0] + counts[0], past[1] + counts[1])
        return torch.stack(logits[1:], dim=1).flatten(0, 1)
