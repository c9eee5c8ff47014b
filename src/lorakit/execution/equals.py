"""Whether a model chooses some of a row's tokens by scores of which the last taken and the first left are equal.

Doge's layers see the keys of the highest scores; equal tokens have equal scores in its first layer. Which of
them is taken depends on how long and how wide the tensor of the scores is: a row with padding, beside
another row or after a cache takes others, with other logits. Only the same row by itself takes the same.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.execution.modes import evaluating
from lorakit.execution.trial import random_ids, row_logits
from lorakit.execution.trial_memory import asked_once


def chooses_among_equals(model: Any, length: int) -> bool:
    """Whether it does so in a row of so many tokens, which are a few in random order."""
    return asked_once(
        model, f"chooses among equals, a row of {length} tokens", lambda: _tried(model, length)
    )


@torch.no_grad()
def _tried(model: Any, length: int) -> bool:
    watch = _EqualScores(length)
    with evaluating(model), watch:
        row_logits(model, random_ids(model, 4)[random_ids(model, length) % 4])
    return watch.equal


class _EqualScores(TorchDispatchMode):
    """Notes whether a choice among so many was one between equals."""

    def __init__(self, among: int) -> None:
        super().__init__()
        self.among, self.equal = among, False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.topk.default:
            scores, count = args[0], args[1]
            axis = args[2] if len(args) > 2 else -1
            if count < scores.shape[axis] == self.among:
                last, first = scores.topk(count + 1, dim=axis).values.split([count, 1], dim=axis)
                last = last.narrow(axis, count - 1, 1)
                # What is hidden is as small as can be, and equal.
                seen = first > torch.finfo(scores.dtype).min / 2
                self.equal |= bool(((last == first) & seen).any())
        return output
