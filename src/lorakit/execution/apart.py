"""Rows that are not packed: padded on the right, or each in a forward of its own.

A row alone is what the model's own code makes of it, with nothing beside it: every other way is held
against that. Padding is another way, and is tried: a rope that is chosen by the longest row of the
batch, a position that counts from the end, a state that runs through the padding answer otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import ModelError
from lorakit.execution.equals import chooses_among_equals
from lorakit.execution.modes import evaluating
from lorakit.execution.trial import (
    LENGTHS,
    Computed,
    computed,
    joined,
    places_compared,
    random_ids,
    row_logits,
    same_computed,
    tolerance,
)
from lorakit.execution.trial_memory import asked_once

# Fields of a configuration by which a model may see later tokens, and what makes it causal.
_CAUSAL_FIELDS = {
    "is_decoder": True,
    "causal": True,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "bidirectional": False,
}


def padded(ids_T: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as a rectangle (S, M) padded on the right, its mask, and the flat places of the T tokens."""
    mask_SM = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=ids_T.device)
    for row, length in enumerate(lengths):
        mask_SM[row, :length] = 1
    real_T = mask_SM.flatten().nonzero()[:, 0]
    ids_SM = torch.zeros_like(mask_SM)
    ids_SM.view(-1)[real_T] = ids_T
    return ids_SM, mask_SM, real_T


def padded_logits(model: Any, ids_T: Tensor, lengths: Sequence[int], keep_L: Tensor) -> Tensor:
    """Next-token logits at the places `keep_L` of the T tokens, (L, V), rows padded on the right."""
    ids_SM, mask_SM, real_T = padded(ids_T, lengths)
    logits_SMV = model(input_ids=ids_SM, attention_mask=mask_SM, use_cache=False).logits
    assert isinstance(logits_SMV, Tensor)
    return logits_SMV.flatten(0, 1).index_select(0, real_T[keep_L])


def logits_alone(model: Any, ids_T: Tensor, lengths: Sequence[int], keep_L: Tensor) -> Tensor:
    """Next-token logits at the places `keep_L` of the T tokens, (L, V), each row in its own forward."""
    logits = [row_logits(model, ids_N) for ids_N in ids_T.split(list(lengths))]
    return torch.cat(logits).index_select(0, keep_L)


def computed_alone(model: Any, ids_T: Tensor, lengths: Sequence[int], keep_L: Tensor) -> Computed:
    """Logits and gradients of each row alone, at places `keep_L` in ascending order."""
    parts, start, first = [], 0, 0
    for ids_N in ids_T.split(list(lengths)):
        mine = keep_L[(keep_L >= start) & (keep_L < start + len(ids_N))] - start
        parts.append(_one(model, ids_N, mine, first))
        start, first = start + len(ids_N), first + len(mine)
    return joined(parts)


def _one(model: Any, ids_N: Tensor, keep: Tensor, first: int) -> Computed:
    return computed(model, lambda: row_logits(model, ids_N).index_select(0, keep), first=first)


def check_causality(model: Any) -> None:
    """See that what a model says of a beginning does not change with what follows it.

    Raises:
        ModelError: it does, so that a loss would see its own labels; or the model does not run on a
            row of tokens. The text says what to do.
    """
    asked_once(model, "sees no later tokens", lambda: _is_causal(model))


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """True; what is not is raised."""
    ids_N = random_ids(model, 12)
    begins = ids_N[:7]
    with evaluating(model):
        whole, beginning = row_logits(model, ids_N)[:7].float(), row_logits(model, begins).float()
        limit = tolerance(model.dtype) * whole.abs().max()
        if whole.shape == beginning.shape and (whole - beginning).abs().max() <= limit:
            return True
        again = row_logits(model, begins).float()
    name = type(model).__name__
    if again.shape == beginning.shape and (again - beginning).abs().max() > limit:
        raise ModelError(
            f"{name} answers the same tokens differently each time, in evaluation mode too: what it "
            "learns could not be measured. Take a model that draws nothing at random"
        )
    raise ModelError(f"{name} sees later tokens: {_way_on(model)}")


def _way_on(model: Any) -> str:
    config = model.config.get_text_config()
    values = config.to_dict()
    wrong = {
        key: causal
        for key, causal in _CAUSAL_FIELDS.items()
        if key in values and bool(values[key]) is not causal
    }
    why = (
        "the logits of a beginning change with what follows it, so it would be trained and judged on "
        "labels that it sees, and cannot continue a text. "
    )
    if not wrong:
        return why + "Take a model that is trained to predict the next token"
    fields = ", ".join(f'"{key}": {str(value).lower()}' for key, value in wrong.items())
    return f"{why}Set {fields} in its config.json: that makes it causal"


def try_padding(model: Any, lengths: Sequence[int]) -> bool:
    """Whether rows padded on the right have the logits and gradients of each alone.

    Args:
        model: a causal LM that attends as it was loaded to.
        lengths: tokens of the rows that are tried.
    """
    return asked_once(model, f"padded, rows of {lengths} tokens", lambda: _pads(model, lengths))


@torch.no_grad()
def _pads(model: Any, lengths: Sequence[int]) -> bool:
    longest = max(lengths)
    if longest > max(LENGTHS) and chooses_among_equals(model, longest):
        return False
    ids_T = random_ids(model, sum(lengths))
    keep_L = places_compared(lengths).to(ids_T.device)
    with evaluating(model):
        return same_computed(
            model,
            "padded",
            lambda: computed(
                model,
                lambda: padded_logits(model, ids_T, lengths, keep_L),
                pick=padded(ids_T, lengths)[2],
            ),
            computed_alone(model, ids_T, lengths, keep_L),
        )
