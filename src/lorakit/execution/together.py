"""Whether prompts of different lengths, padded on the left, are continued as each is alone.

Masks, positions, a state that runs through the padding, a rope that is chosen by the longest prompt:
some models answer otherwise in company. So two prompts are continued together and alone, once for a
model, and again past each limit of its configuration that prompts and answers cross.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.execution.facts import facts_of
from lorakit.execution.lengths import crossed, limits_of
from lorakit.execution.modes import evaluating
from lorakit.execution.trial import (
    FAILURES,
    LENGTHS,
    random_ids,
    row_logits,
    same_answer,
    tolerance,
)

NEW = 5
"""Tokens by which the prompts of a trial are continued."""

Continue = Callable[[Sequence[Sequence[int]]], list[Tensor]]
"""Prompts to the logits of the first `NEW` tokens that follow each, (NEW, V), greedily, in one batch."""


def continues_together(model: Any, longest: int, continue_greedily: Continue) -> bool:
    """Whether prompts may share a batch; asked once for a model, and again past its limits.

    Args:
        model: a causal LM.
        longest: tokens of the longest prompt with its answer.
        continue_greedily: how a batch is continued.

    Raises:
        ModelError: see `check_continued`.
    """
    check_continued(model, longest, continue_greedily)
    facts = facts_of(model)
    if facts.batches is None:
        facts.batches = _same(model, LENGTHS, continue_greedily)
    if longest > facts.batches_to:
        limit = crossed(limits_of(model.config), facts.batches_to, longest)
        facts.batches_to = longest
        # A prompt that crosses the limit with its answer, and one that has crossed it before.
        lengths = () if limit is None else (min(LENGTHS), max(2, limit - 2), limit + 3)
        if lengths and facts.batches:
            facts.batches = _same(model, lengths, continue_greedily)
    return facts.batches


def check_continued(model: Any, longest: int, continue_greedily: Continue) -> None:
    """See that a prompt is continued by the likeliest tokens of the model's own forward.

    Asked once, and again past each limit of the configuration that prompts and answers cross.
    transformers' `generate` counts positions from 0 where RoBERTa's kin count from behind the padding
    token's, appends a mask token for XLM, and asks BLT for a size that it has not (transformers 5.24).

    Args:
        model: a causal LM.
        longest: tokens of the longest prompt with its answer.
        continue_greedily: how a batch is continued.

    Raises:
        ModelError: it is not, or not at all.
    """
    facts = facts_of(model)
    if not facts.continued_to:
        _check_alone(model, min(LENGTHS), continue_greedily)
        facts.continued_to = max(LENGTHS)
    if longest > facts.continued_to:
        limit = crossed(limits_of(model.config), facts.continued_to, longest)
        if limit is not None:
            _check_alone(model, limit + 3, continue_greedily)
        facts.continued_to = longest


@torch.no_grad()
def _check_alone(model: Any, length: int, continue_greedily: Continue) -> None:
    name = type(model).__name__
    prompt = random_ids(model, length)
    try:
        steps_NV = continue_greedily([prompt.tolist()])[0]
    except FAILURES as error:
        raise ModelError(
            f"transformers' generate does not run {name}: {error}. Its loss and choices among given "
            "answers are right; for text take another model"
        ) from error
    whole = torch.cat([prompt, steps_NV.argmax(-1)[:-1]])
    with evaluating(model):
        expected_NV = row_logits(model, whole)[len(prompt) - 1 :]
    # Far more than rounding: steps with a cache may differ from the whole by some of that.
    close = 10 * tolerance(model.dtype)
    if not same_answer(model, "one prompt", lambda: steps_NV, expected_NV, close=close):
        raise ModelError(
            f"{name} is not continued rightly by transformers' generate (tried on {length} tokens): its "
            "tokens are not those that the model's own forward finds likeliest. Its loss and choices "
            "among given answers are right; for text take another model, or lorakit serve, which "
            "tries its own ways"
        )


@torch.no_grad()
def _same(model: Any, lengths: Sequence[int], continue_greedily: Continue) -> bool:
    ids = random_ids(model, sum(lengths)).split(list(lengths))
    prompts = [part.tolist() for part in ids]
    alone = [continue_greedily([prompt])[0] for prompt in prompts]

    def together() -> Tensor:
        return torch.cat(
            [
                _until_they_part(one, other)
                for one, other in zip(continue_greedily(prompts), alone, strict=True)
            ]
        )

    return same_answer(model, "prompts padded on the left", together, torch.cat(alone))


def _until_they_part(logits_NV: Tensor, alone_NV: Tensor) -> Tensor:
    """The logits up to the first token chosen otherwise, whose followers have another beginning.

    Whether that choice was a tie is for its own logits to say.
    """
    same_N = logits_NV.argmax(-1) == alone_NV.argmax(-1)
    count = int(same_N.long().cumprod(0).sum()) + 1
    return torch.cat([logits_NV[:count], alone_NV[count:]])
