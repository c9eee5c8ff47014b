"""Whether prompts of different lengths, padded on the left, are continued as each is alone.

Masks, positions, a state that runs through the padding, a rope that is chosen by the longest prompt:
some models answer otherwise in company. So two prompts are continued together and alone, once for a
model, and again past each limit of its configuration that prompts and answers cross.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.continuing import Continue
from lorakit.execution.facts import facts_of
from lorakit.execution.lengths import crossed, limits_of
from lorakit.execution.trial import LENGTHS, random_ids, same_answer
from lorakit.execution.trial_memory import asked_once


def continues_together(model: Any, longest: int, continue_greedily: Continue) -> bool:
    """Whether prompts may share a batch; asked once for a model, and again past its limits.

    Args:
        model: a causal LM.
        longest: tokens of the longest prompt with its answer.
        continue_greedily: how a batch is continued.
    """
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


def _same(model: Any, lengths: Sequence[int], continue_greedily: Continue) -> bool:
    return asked_once(
        model,
        f"prompts of {lengths} tokens padded on the left",
        lambda: _tried(model, lengths, continue_greedily),
    )


@torch.no_grad()
def _tried(model: Any, lengths: Sequence[int], continue_greedily: Continue) -> bool:
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
