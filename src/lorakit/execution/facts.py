"""What was found by trying a model, once: whether it packs, its head, its blocks.

The trials are here; how two answers are compared is in trial.py.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lorakit.execution import attention
from lorakit.execution.attention import maskless
from lorakit.execution.block_trial import same_blocks
from lorakit.execution.family import Decoder, as_taken_by, linear_of
from lorakit.execution.fused import fused_hidden, leave_compiled
from lorakit.execution.lengths import BEYOND, crossed, limits_of
from lorakit.execution.modes import dropping, evaluating
from lorakit.execution.own import own_hidden
from lorakit.execution.own_caches import Call, Way
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.trial import (
    LENGTHS,
    computed,
    positions,
    random_ids,
    same_answer,
    same_computed,
    tolerance,
)
from lorakit.execution.trial_memory import asked_once
from lorakit.kernels import native
from lorakit.kernels.block import linear
from lorakit.kernels.chosen import kernels_of
from lorakit.kernels.layout import layout


@dataclass
class Facts:
    """What is known of a model; nothing here holds the model itself.

    Attributes:
        causal: that the model does not see later tokens was asked.
        right_to: the longest rows that all of this holds for.
        lengths: tokens of the two sequences that are tried: past the limits that rows cross.
        packs: whether packed sequences give what each gives alone.
        pads: whether rows padded on the right do.
        by_sequence: paths of the modules that get the sequences of a packed row apart for that.
        handles: of the hooks on those modules.
        plain_head: whether logits are the head's product with the hidden states.
        settings: what the attention of each block asks for when it trains, by the block's path.
        tried, right: paths of blocks that were run fused, and of those that gave the same answer.
        recomputes: whether activation checkpointing is on.
        answers_step: whether answers as steps after their prompt are as likely as in whole rows.
        continued_to: tokens of prompt and answer up to which was tried how prompts are continued; 0
            where it was not tried.
        continues_apart: how each is continued by itself; None by transformers' `generate`.
        batches: whether prompts of different lengths are continued in a batch as each is alone.
        batches_to: tokens of prompt and answer up to which that holds.
    """

    causal: bool = False
    right_to: int = max(LENGTHS)
    lengths: tuple[int, int] = LENGTHS
    packs: bool | None = None
    pads: bool | None = None
    by_sequence: tuple[str, ...] = ()
    handles: list[RemovableHandle] = field(default_factory=list)
    plain_head: bool | None = None
    settings: dict[str, AttentionSettings] | None = None
    tried: set[str] = field(default_factory=set)
    right: set[str] = field(default_factory=set)
    recomputes: bool = False
    answers_step: bool | None = None
    continued_to: int = 0
    continues_apart: tuple[Way, Call] | None = None
    batches: bool | None = None
    batches_to: int = max(LENGTHS)

    def reach(self, config: Any, longest: int) -> bool:
        """Ask everything again where rows of so many tokens cross a limit for the first time.

        Returns:
            Whether something is to be asked again.
        """
        if longest <= self.right_to:
            return False
        limit = crossed(limits_of(config), self.right_to, longest)
        self.right_to = longest
        if limit is None:
            return False
        self.lengths = (min(LENGTHS), limit + BEYOND)
        # Found anew: on longer rows a module may be called with other arguments, masks for one.
        for handle in self.handles:
            handle.remove()
        self.handles, self.by_sequence = [], ()
        self.packs = self.pads = None
        self.answers_step = False  # steps are tried on short rows alone
        self.tried.clear()
        self.right.clear()
        return True


_known: "WeakKeyDictionary[nn.Module, Facts]" = WeakKeyDictionary()


def facts_of(model: nn.Module) -> Facts:
    """What is known of this model, remembered as long as it lives."""
    return _known.setdefault(model, Facts())


def try_head(model: Any, head: nn.Module) -> bool:
    """Whether logits are exactly the product of the head's tensors with the last hidden states.

    The head's output is enlarged for the trial, so that a soft cap shows even where it hardly bends
    this model's own logits. A pair beside it may be there or not: what else is done to logits is asked.

    Args:
        model: as it is to be run.
        head: one that `fits`.
    """
    return asked_once(model, "the head alone", lambda: _is_plain(model, head))


@torch.no_grad()
def _is_plain(model: Any, head: nn.Module) -> bool:
    if model.base_model is model:  # its parts do not say where the hidden states are
        return False
    ids_1T = torch.arange(6, device=model.device)[None]
    tensors = linear_of(head)
    handle = head.register_forward_hook(lambda _module, _inputs, output: output * 1000)
    try:
        with evaluating(model):
            hidden = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
            hidden = as_taken_by(head, hidden)
            return same_answer(
                model,
                "the head alone",
                lambda: model(input_ids=ids_1T, use_cache=False).logits,
                1000 * linear(hidden, tensors),
                close=1e-4 if tolerance(model.dtype) < 1e-2 else 2e-2,
            )
    finally:
        handle.remove()


def try_fused(
    model: Any,
    decoder: Decoder,
    settings: dict[str, AttentionSettings],
    paths: set[str],
    lengths: tuple[int, int] = LENGTHS,
) -> bool:
    """Whether the fused blocks give the hidden states and gradients of the model's own code.

    Where they do not by the compiled kernels, they are tried by plain torch, and stay with it.
    """
    question = f"fused blocks, rows of {lengths} tokens: {' '.join(sorted(paths))}"
    kernels = kernels_of(model)

    def ask() -> bool:
        return _fuses(model, decoder, settings, paths, lengths)

    if kernels.name != native.PLAIN:
        if asked_once(model, f"{kernels.name} ({kernels.why}), {question}", ask):
            return True
        leave_compiled(decoder, paths)
    return asked_once(model, question, ask)


@torch.no_grad()
def _fuses(
    model: Any,
    decoder: Decoder,
    settings: dict[str, AttentionSettings],
    paths: set[str],
    lengths: tuple[int, int],
) -> bool:
    ids_T = random_ids(model, sum(lengths))
    where, places = layout(lengths, ids_T.device), positions(lengths).to(ids_T.device)
    with evaluating(model), maskless():
        if model.dtype in (torch.bfloat16, torch.float16):
            return same_answer(
                model,
                "fused blocks",
                lambda: fused_hidden(decoder, settings, paths, ids_T, places, where),
                lambda: own_hidden(model, ids_T, places, where),
            ) and same_blocks(model, decoder, settings, paths, ids_T, places, where)
        return same_computed(
            model,
            "fused blocks",
            lambda: computed(
                model, lambda: fused_hidden(decoder, settings, paths, ids_T, places, where)
            ),
            computed(model, lambda: own_hidden(model, ids_T, places, where)),
        )


def settings_in_training(model: Any, decoder: Decoder) -> dict[str, AttentionSettings]:
    """What the attention of each qualified block asks for when it trains, by the block's path."""
    devices = [model.device] if model.device.type == "cuda" else []
    # Dropout of attention shows in training alone; what it draws is nobody else's business.
    with torch.random.fork_rng(devices=devices), dropping(model):
        call = attention.observe(model)
    settings = call.settings
    return {
        block.path: settings[block.attention]
        for block, qualified in zip(decoder.blocks, decoder.qualified, strict=True)
        if qualified
        and block.attention in settings
        # What `attend` is not told by numbers is for the model's own code.
        and settings[block.attention].function is None
        and block.attention not in call.biased
    }
