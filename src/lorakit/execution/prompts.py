"""Prompts as token ids: what fits a model, and several of them as one rectangle."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.execution.lengths import context_length
from lorakit.lora.acting import acting_on
from lorakit.lora.invocation import invocation_start

_log = logging.getLogger("lorakit.execution")


def embedding_count(model: Any) -> int:
    """Tokens that a model has embeddings for; a tokenizer may know more, and fewer."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_prompts(
    model: Any, prompts: Sequence[Sequence[int]], new: int, tokenizer: Any = None
) -> None:
    """See that each prompt has tokens, all of them the model's, and positions for `new` more.

    Raises:
        ModelError: which prompt does not fit, and what to do.
    """
    most = context_length(model.config)
    known = embedding_count(model)
    _warn_of_silence(model, prompts, tokenizer)
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ModelError(f"prompt {number} has no tokens")
        if (id := max(prompt)) >= known:
            text = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(int(id))!r})"
            raise ModelError(
                f"prompt {number} has the token {id}{text}, and the model has embeddings for {known} "
                "tokens: leave that text out, or use the tokenizer that belongs to the model"
            )
        if most is not None and len(prompt) + new > most:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens; with {new} new ones it passes the "
                f"model's {most} positions: shorten it or lower max_new_tokens"
            )


def _warn_of_silence(model: Any, prompts: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """Say how many prompts lack the invocation of an adapter that acts from one on."""
    acting = acting_on(model)
    if acting is None:
        return
    silent = sum(invocation_start(prompt, acting.invocation) is None for prompt in prompts)
    if silent:
        text = acting.invocation if tokenizer is None else tokenizer.decode(acting.invocation)
        _log.warning(
            "the adapter acts from %r on, which %d of %d prompts do not hold: the base alone answers "
            "those",
            *(text, silent, len(prompts)),
        )


def left_padded(
    prompts: Sequence[Sequence[int]], tokenizer: Any, model: Any
) -> tuple[Tensor, Tensor]:
    """Prompts as a rectangle (B, T) padded on the left, and its mask."""
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(model.device), mask_BT.to(model.device)


def with_padding_token(model: Any, ids_N: Tensor) -> Tensor:
    """The same tokens, the third of them the padding token of the configuration, where it has one.

    It is a token like any other in a row that is not padded; RoBERTa counts no place for it.
    """
    token = getattr(model.config.get_text_config(), "pad_token_id", None)
    if not isinstance(token, int) or not 0 <= token < embedding_count(model) or len(ids_N) < 3:
        return ids_N
    ids_N = ids_N.clone()
    ids_N[2] = token
    return ids_N
