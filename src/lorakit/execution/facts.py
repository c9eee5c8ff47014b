"""What was found by trying a model, once: whether it packs, its head, its blocks.

The trials are here; how two answers are compared is in trial.py.
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.execution import attention
from lorakit.execution.attention import AttentionSettings, maskless
from lorakit.execution.family import Decoder
from lorakit.execution.fused import fused_hidden
from lorakit.execution.modes import dropping, evaluating
from lorakit.execution.own import own_hidden, own_logits
from lorakit.execution.trial import LENGTHS, positions, random_ids, same_answer, tolerance
from lorakit.kernels.layout import layout


@dataclass
class Facts:
    """What is known of a model; nothing here holds the model itself.

    Attributes:
        packs: whether packed sequences give what each gives alone.
        plain_head: whether logits are the head's product with the hidden states.
        settings: what the attention of each block asks for when it trains, by the block's path.
        tried, right: paths of blocks that were run fused, and of those that gave the same answer.
        recomputes: whether activation checkpointing is on.
        answers_step: whether answers as steps after their prompt are as likely as in whole rows.
    """

    packs: bool | None = None
    plain_head: bool | None = None
    settings: dict[str, AttentionSettings] | None = None
    tried: set[str] = field(default_factory=set)
    right: set[str] = field(default_factory=set)
    recomputes: bool = False
    answers_step: bool | None = None


_known: "WeakKeyDictionary[nn.Module, Facts]" = WeakKeyDictionary()


def facts_of(model: nn.Module) -> Facts:
    """What is known of this model, remembered as long as it lives."""
    return _known.setdefault(model, Facts())


@torch.no_grad()
def try_packing(model: Any) -> bool:
    """Whether two packed sequences give, up to rounding, the logits of each alone, and the second's
    do not change when the first's tokens do.

    Recurrent models, and those whose attention is not transformers' switchable one (ALiBi
    families), answer False and attend as they were loaded to.
    """
    ids = random_ids(model, 2, sum(LENGTHS))
    ids[1, LENGTHS[0] :] = ids[0, LENGTHS[0] :]
    places, where = positions().to(ids.device), layout(LENGTHS, ids.device)
    keep_L = torch.arange(sum(LENGTHS), device=ids.device)

    def alone(part: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=part[None], use_cache=False).logits[0]
        return logits

    def packed(row: int) -> Tensor:
        attention.switch(model)
        return own_logits(model, ids[row], places, where, keep_L)

    with evaluating(model):
        first, second = (alone(part) for part in ids[0].split(LENGTHS))
        right = same_answer(model, "packed", lambda: packed(0), torch.cat([first, second]))
        right = right and same_answer(
            model,
            "packed, after another sequence",
            lambda: packed(1)[LENGTHS[0] :],
            lambda: packed(0)[LENGTHS[0] :],
            close=1e-6,
        )
        right = right and same_answer(
            model,
            "attention as loaded, through lorakit's",
            lambda: alone(ids[0, : LENGTHS[0]]),
            first,
            close=1e-6,
        )
    if not right:
        attention.switch_back(model)
    return right


@torch.no_grad()
def try_head(model: Any, head: nn.Module) -> bool:
    """Whether logits are exactly the head's product with the last hidden states.

    The head's output is enlarged for the trial, so that a soft cap shows even where it hardly bends
    this model's own logits.
    """
    ids_1T = torch.arange(6, device=model.device)[None]
    handle = head.register_forward_hook(lambda _module, _inputs, output: output * 1000)
    try:
        with evaluating(model):
            hidden = model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state
            return same_answer(
                model,
                "the head alone",
                lambda: model(input_ids=ids_1T, use_cache=False).logits,
                head(hidden),
                close=1e-4 if tolerance(model.dtype) < 1e-2 else 2e-2,
            )
    finally:
        handle.remove()


@torch.no_grad()
def try_fused(
    model: Any, decoder: Decoder, settings: dict[str, AttentionSettings], paths: set[str]
) -> bool:
    """Whether the fused blocks give the hidden states that the model's own code gives."""
    ids_T = random_ids(model, sum(LENGTHS))
    where, places = layout(LENGTHS, ids_T.device), positions().to(ids_T.device)
    with evaluating(model), maskless():
        return same_answer(
            model,
            "fused blocks",
            lambda: fused_hidden(decoder, settings, paths, ids_T, places, where),
            own_hidden(model, ids_T, places, where),
        )


def settings_in_training(model: Any, decoder: Decoder) -> dict[str, AttentionSettings]:
    """What the attention of each qualified block asks for when it trains, by the block's path."""
    devices = [model.device] if model.device.type == "cuda" else []
    # Dropout of attention shows in training alone; what it draws is nobody else's business.
    with torch.random.fork_rng(devices=devices), dropping(model):
        settings = attention.observe(model).settings
    return {
        block.path: settings[block.attention]
        for block, qualified in zip(decoder.blocks, decoder.qualified, strict=True)
        if qualified and block.attention in settings
    }
