"""A loop of our own inside transformers' `generate`: one prompt, continued by the model's own forward.

Where transformers' loop is not right for a model (continuing.py), its settings, processors and stops
still are. What it hands to the model is not: positions that the model counts otherwise, a cache that
lacks a size, one token where the whole row is due.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lorakit.execution.own_caches import SequencesApart, SequenceState


def own_arguments(
    model: Any,
    blocks: SequencesApart,
    ids_1T: Tensor,
    put: Callable[[Tensor], None] = lambda _: None,
) -> dict[str, Any]:
    """What `generate` is given beside its settings for one prompt (1, T) that the model continues by itself.

    Positions are given although nothing reads them: some classes do not find them for a text alone.
    That of Qwen3-Omni's thinker asks its configuration for a token that it has not (transformers 5.24).
    """
    given: dict[str, Any] = {"custom_generate": own_decoding(blocks, put)}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None]
    return given


def own_decoding(
    blocks: SequencesApart, put: Callable[[Tensor], None] = lambda _: None
) -> Callable[..., Tensor]:
    """What `generate` takes as `custom_generate`, for prompts one at a time.

    Args:
        blocks: computes the logits of what comes next.
        put: is handed each new token, int64 of shape (1,), as soon as it is chosen.

    Returns:
        A function of the model, the prompt (1, T), the processors and the stops that transformers made
        of its settings; it returns prompt and answer, (1, T + N).
    """

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **_: Any,
    ) -> Tensor:
        assert len(input_ids) == 1
        state = SequenceState()
        while True:
            logits_1V = blocks.following(state, input_ids[0].tolist())[None].float()
            scores_1V = logits_processor(input_ids, logits_1V)
            if generation_config.do_sample:
                new = torch.multinomial(scores_1V.softmax(-1), num_samples=1)[:, 0]
            else:
                new = scores_1V.argmax(-1)
            input_ids = torch.cat([input_ids, new[:, None]], dim=-1)
            put(new)
            if bool(stopping_criteria(input_ids, scores_1V).all()):
                return input_ids

    return decode
