"""What was found by trying a model, once: whether it packs, its head, its blocks.

The trials are here; how two answers are compared is in trial.py.
"""

import logging
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorakit.execution import attention
from lorakit.execution.apart import computed_alone
from lorakit.execution.attention import maskless
from lorakit.execution.by_sequence import MixingModule, split
from lorakit.execution.family import Decoder, linear_of
from lorakit.execution.fused import fused_hidden
from lorakit.execution.lengths import BEYOND, crossed, limits_of
from lorakit.execution.mixing import mixing_modules
from lorakit.execution.modes import dropping, evaluating
from lorakit.execution.own import let_count, own_hidden, own_logits
from lorakit.execution.settings import AttentionSettings
from lorakit.execution.trial import (
    FAILURES,
    LENGTHS,
    computed,
    places_compared,
    positions,
    random_ids,
    row_logits,
    same_answer,
    same_computed,
    tolerance,
)
from lorakit.kernels.block import linear
from lorakit.kernels.layout import layout

_log = logging.getLogger("lorakit.execution")


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
        continued_to: tokens up to which a prompt alone was seen to be continued by the model's own
            likeliest tokens; 0 where it was not tried.
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


@torch.no_grad()
def try_packing(model: Any, facts: Facts) -> bool:
    """Whether two packed sequences give, up to rounding, the logits and the gradients of each alone,
    and the second's do not change when the first's tokens do.

    Attention goes through lorakit's function where it can. Where a recurrence, a convolution or an
    attention of the model's own still mixes the sequences, the modules that do so are found and get
    them apart, together in rectangles or else one at a time (by_sequence.py).

    Args:
        model: a causal LM.
        facts: of the model; which modules get the sequences apart is noted there.
    """
    with evaluating(model):
        let_count(model, False)
        if _packs(model, "packed", facts.lengths):
            return True
        for switched in (True, False):
            if _packs_by_sequence(model, facts, switched=switched):
                return True
        for counts in (False, True):  # places given, or found by the model itself
            let_count(model, counts)
            for switched in (True, False):
                if _packs_by_sequence(model, facts, switched=switched, counting=True):
                    return True
        let_count(model, False)
    return False


def _packs_by_sequence(model: Any, facts: Facts, *, switched: bool, counting: bool = False) -> bool:
    """Whether the model packs where the modules that mix, or count, get the sequences apart."""
    mixing = _mixing(model, switched=switched, counting=counting)
    if not mixing and (switched or counting):
        return False
    longest = max(facts.lengths)
    for together in (True, False):
        handles = facts.handles = split(mixing, together=together)
        way = "packed, mixing modules by sequence"
        # In a rectangle of two like lengths the shorter one is padded past every limit, too.
        tried = [facts.lengths, (longest - 1, longest)] if together else [facts.lengths]
        if all(_packs(model, way, each, switched=switched) for each in tried):
            facts.by_sequence = tuple(each.path for each in mixing)
            return True
        for handle in handles:
            handle.remove()
        facts.handles = []
        if not mixing:
            break
    return False


def _mixing(model: Any, *, switched: bool, counting: bool) -> list[MixingModule]:
    """The modules that mix the sequences of a packed row; [] where they are not found."""
    # Tokens are known by their number: no size of the model may be the same.
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    second = next(n for n in range(24, 10**6) if 13 + n not in sizes)
    lengths = (13, second)
    ids_T, where = random_ids(model, sum(lengths)), layout(lengths, model.device)
    # Places that begin again let transformers hide one sequence from another in attention that is
    # not switched, at the cost of the whole row's square: as one sequence those modules are found.
    places = [torch.arange(n) for n in (lengths if switched else (sum(lengths),))]
    positions_T = torch.cat(places).to(ids_T.device)
    keep_L = torch.arange(sum(lengths), device=ids_T.device)

    def run() -> None:
        own_logits(model, ids_T, positions_T, where, keep_L)

    try:
        if switched:
            attention.switch(model)
        return mixing_modules(model, run, lengths, where, counting=counting)
    except FAILURES as error:
        _log.info("%s, mixing modules: %s", type(model).__name__, error)
        return []
    finally:
        attention.switch_back(model)


def _packs(model: Any, way: str, lengths: tuple[int, int], *, switched: bool = True) -> bool:
    """Whether the model packs as it is now; if so its attention stays switched, where it is to be."""
    first = lengths[0]
    ids = random_ids(model, 2, sum(lengths))
    ids[1, first:] = ids[0, first:]
    places, where = positions(lengths).to(ids.device), layout(lengths, ids.device)
    keep_L = places_compared(lengths).to(ids.device)

    def packed(row: int) -> Tensor:
        if switched:
            attention.switch(model)
        return own_logits(model, ids[row], places, where, keep_L)

    attention.switch_back(model)
    alone = computed_alone(model, ids[0], lengths, keep_L)
    right = same_computed(model, way, lambda: computed(model, lambda: packed(0)), alone)
    right = right and same_answer(
        model,
        f"{way}, after another sequence",
        lambda: packed(1)[first:],
        lambda: packed(0)[first:],
        close=1e-6,
    )
    right = right and same_answer(
        model,
        "attention as loaded, through lorakit's",
        lambda: row_logits(model, ids[0, :first]),
        alone.answer[:first],
        close=1e-5,  # with a gradient torch may take another kernel
    )
    if not right:
        attention.switch_back(model)
    return right


@torch.no_grad()
def try_head(model: Any, head: nn.Module) -> bool:
    """Whether logits are exactly the product of the head's tensors with the last hidden states.

    The head's output is enlarged for the trial, so that a soft cap shows even where it hardly bends
    this model's own logits. A pair beside it may be there or not: what else is done to logits is asked.

    Args:
        model: as it is to be run.
        head: one that `fits`.
    """
    if model.base_model is model:  # its parts do not say where the hidden states are
        return False
    ids_1T = torch.arange(6, device=model.device)[None]
    tensors = linear_of(head)
    handle = head.register_forward_hook(lambda _module, _inputs, output: output * 1000)
    try:
        with evaluating(model):
            hidden = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
            return same_answer(
                model,
                "the head alone",
                lambda: model(input_ids=ids_1T, use_cache=False).logits,
                1000 * linear(hidden, tensors),
                close=1e-4 if tolerance(model.dtype) < 1e-2 else 2e-2,
            )
    finally:
        handle.remove()


@torch.no_grad()
def try_fused(
    model: Any,
    decoder: Decoder,
    settings: dict[str, AttentionSettings],
    paths: set[str],
    lengths: tuple[int, int] = LENGTHS,
) -> bool:
    """Whether the fused blocks give the hidden states and gradients of the model's own code."""
    ids_T = random_ids(model, sum(lengths))
    where, places = layout(lengths, ids_T.device), positions(lengths).to(ids_T.device)
    with evaluating(model), maskless():
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
