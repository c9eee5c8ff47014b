"""The model's own code on packed sequences: what every faster way is held against."""

import inspect
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from lorakit.execution.attention import KEYWORD, PackedCall, is_switched, maskless
from lorakit.execution.by_sequence import within
from lorakit.kernels.layout import Layout

_counts_itself: "WeakSet[nn.Module]" = WeakSet()


def let_count(model: Any, counts: bool) -> None:
    """Whether the model finds the places of tokens itself, or is given them.

    RoBERTa's places begin after that of the padding, and are found from the ids.
    """
    (_counts_itself.add if counts else _counts_itself.discard)(model)


def own_hidden(model: Any, ids_T: Tensor, positions_T: Tensor, where: Layout) -> Tensor:
    """The last hidden states after the final norm, (T, D), of a model whose attention is switched."""
    base = model.base_model
    with maskless(), within(where):
        hidden_1TD = base(**_arguments(model, base, ids_T, positions_T, where)).last_hidden_state
    assert isinstance(hidden_1TD, Tensor)
    return hidden_1TD[0]


def own_logits(
    model: Any, ids_T: Tensor, positions_T: Tensor, where: Layout, keep_L: Tensor
) -> Tensor:
    """Next-token logits at the places `keep_L` of the row, (L, vocabulary), by the model's head."""
    arguments = _arguments(model, model, ids_T, positions_T, where)
    if _takes(model, "logits_to_keep"):
        arguments["logits_to_keep"] = keep_L
    with maskless(), within(where):
        logits_1LV = model(**arguments).logits
    assert isinstance(logits_1LV, Tensor)
    # xLSTM takes any argument and leaves this one aside (transformers 5.24).
    kept = logits_1LV.shape[1] == len(keep_L)
    return logits_1LV[0] if kept else logits_1LV[0].index_select(0, keep_L)


def _arguments(
    model: Any, called: Any, ids_T: Tensor, positions_T: Tensor, where: Layout
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"input_ids": ids_T[None], "use_cache": False}
    if model not in _counts_itself and _takes(called, "position_ids"):
        arguments["position_ids"] = positions_T[None]
    if is_switched(model):
        arguments[KEYWORD] = PackedCall(where)
    most = getattr(model.config, "max_inference_chunksize", None)
    if isinstance(most, int) and most < ids_T.shape[0]:
        # xLSTM reads a row of more tokens in pieces of so many, whose edges are nobody's, and without
        # gradients. With the hidden states of each layer asked for it reads the row as one.
        arguments["output_hidden_states"] = True
    return arguments


def _takes(model: Any, name: str) -> bool:
    """Whether the model's forward has an argument of this name, or any."""
    known = inspect.signature(model.forward).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in known)
