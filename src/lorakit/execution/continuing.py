"""How a model continues a prompt: by transformers' `generate` where that is right, else by itself.

`generate` counts positions from 0 where RoBERTa and its kin count from behind the padding token's,
appends a mask token for XLM, asks BLT for a number of layers that it has not, and gives Phi-4 multimodal
one token without a cache where its rope changes (transformers 5.24). So one prompt is continued by
it and held against the model's own forward: a short one, and one across each limit of the
configuration that prompts and answers cross. Where they differ each prompt is continued by the model's
own forward, with the model's cache or, where that is wrong too, without one (own_caches.py).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.equals import chooses_among_equals
from lorakit.execution.facts import facts_of
from lorakit.execution.lengths import limits_of
from lorakit.execution.modes import evaluating
from lorakit.execution.own_caches import SequencesApart
from lorakit.execution.prompts import with_padding_token
from lorakit.execution.stepping import open_apart
from lorakit.execution.trial import (
    FAILURES,
    LENGTHS,
    random_ids,
    row_logits,
    same_answer,
    tolerance,
)
from lorakit.execution.trial_memory import asked_once

_log = logging.getLogger("lorakit.execution")

_CLOSE = 2e-3
"""Share of the largest logit by which steps with a cache may differ: Zamba 2's do by 5e-4, in float32."""
NEW = 5
"""Tokens by which the prompts of a trial are continued."""

Continue = Callable[[Sequence[Sequence[int]]], list[Tensor]]
"""Prompts to the logits of the first `NEW` tokens that follow each, (NEW, V), greedily, in one batch."""


def continued_apart(model: Any, longest: int, continue_greedily: Continue) -> SequencesApart | None:
    """None where transformers' `generate` is right for this model; else what computes its next tokens.

    Asked once, and again past each limit of the configuration that prompts and answers cross.

    Args:
        model: a causal LM.
        longest: tokens of the longest prompt with its answer.
        continue_greedily: how transformers continues a batch.

    Raises:
        ModelError: nothing is right: the model answers otherwise each time it is asked, or does not run.
    """
    facts = facts_of(model)
    if longest > facts.continued_to or not facts.continued_to:
        lengths = _lengths(limits_of(model.config), facts.continued_to, longest)
        wrong = facts.continues_apart is not None
        if lengths and (wrong or not all(_right(model, n, continue_greedily) for n in lengths)):
            blocks = open_apart(model, longest, ())
            if facts.continues_apart != (blocks.kind, blocks.call):
                _log.warning(
                    "%s is continued otherwise by transformers' generate than by its own forward, so "
                    "that each prompt is continued by itself, %s",
                    *(type(model).__name__, blocks.kind.value),
                )
            facts.continues_apart = (blocks.kind, blocks.call)
        facts.continued_to = max(longest, *LENGTHS)
    return (
        None if facts.continues_apart is None else SequencesApart(model, (), *facts.continues_apart)
    )


def _lengths(limits: Sequence[int], tried: int, longest: int) -> list[int]:
    """Tokens of the prompts of a trial: a short one; one for each limit that is crossed for the first
    time, which crosses it with its answer; and one that has crossed the largest before."""
    crossed = [limit for limit in limits if max(tried, *LENGTHS) <= limit < longest]
    lengths = [] if tried else [min(LENGTHS)]
    lengths += [limit - NEW // 2 for limit in crossed]
    return lengths + [limit + NEW // 2 + 1 for limit in crossed[-1:]]


def _right(model: Any, length: int, continue_greedily: Continue) -> bool:
    """Whether a prompt of so many tokens is continued as by the model's own forward."""
    return asked_once(
        model,
        f"generate, a prompt of {length} tokens and {NEW} new ones",
        lambda: _tried(model, length, continue_greedily),
    )


@torch.no_grad()
def _tried(model: Any, length: int, continue_greedily: Continue) -> bool:
    name = type(model).__name__
    prompt = with_padding_token(model, random_ids(model, length))
    if length > max(LENGTHS) and chooses_among_equals(model, length + NEW):
        return False
    try:
        steps_NV = continue_greedily([prompt.tolist()])[0]
    except FAILURES as error:
        _log.info("%s is not run by transformers' generate: %s", name, error)
        return False
    whole = torch.cat([prompt, steps_NV.argmax(-1)[:-1]])
    with evaluating(model):
        expected_NV = row_logits(model, whole)[length - 1 :]
        way = f"generate, {length} tokens"
        close = max(_CLOSE, tolerance(model.dtype))
        if same_answer(model, way, lambda: steps_NV, expected_NV, close=close):
            return True
        close = max(close, min(4 * _rounding(model, whole), 10 * tolerance(model.dtype)))
        # Ropes that ask for the longest row: a token's logits are those of the row that ends with it.
        ends = range(length, len(whole) + 1)
        each_NV = torch.stack([row_logits(model, whole[:end])[-1] for end in ends])
        return same_answer(model, f"{way}, row by row", lambda: steps_NV, each_NV, close=close)


def _rounding(model: Any, ids_N: Tensor) -> float:
    """How far rounding alone moves the logits of a row, as a share of the largest one.

    What the input embeddings give is off by about its last bit for that.
    """
    generator = torch.Generator().manual_seed(0)

    def shake(_module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output * (1 + torch.finfo(output.dtype).eps * noise)

    with torch.no_grad():
        right = row_logits(model, ids_N).float()
        handle = model.get_input_embeddings().register_forward_hook(shake)
        try:
            shaken = row_logits(model, ids_N).float()
        finally:
            handle.remove()
    return float((shaken - right).abs().max() / right.abs().max())
