"""The model's own code on packed sequences: what every faster way is held against."""

from typing import Any

from torch import Tensor

from lorakit.execution.attention import KEYWORD, PackedCall, maskless
from lorakit.execution.by_sequence import within
from lorakit.kernels.layout import Layout


def own_hidden(model: Any, ids_T: Tensor, positions_T: Tensor, where: Layout) -> Tensor:
    """The last hidden states after the final norm, (T, D), of a model whose attention is switched."""
    with maskless(), within(where):
        hidden_1TD = model.base_model(**_arguments(ids_T, positions_T, where)).last_hidden_state
    assert isinstance(hidden_1TD, Tensor)
    return hidden_1TD[0]


def own_logits(
    model: Any, ids_T: Tensor, positions_T: Tensor, where: Layout, keep_L: Tensor
) -> Tensor:
    """Next-token logits at the places `keep_L` of the row, (L, vocabulary), by the model's head."""
    with maskless(), within(where):
        logits_1LV = model(**_arguments(ids_T, positions_T, where), logits_to_keep=keep_L).logits
    assert isinstance(logits_1LV, Tensor)
    return logits_1LV[0]


def _arguments(ids_T: Tensor, positions_T: Tensor, where: Layout) -> dict[str, Any]:
    return {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        "use_cache": False,
        KEYWORD: PackedCall(where),
    }
