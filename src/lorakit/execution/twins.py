"""Tokens that a frozen output head cannot tell apart.

The logits of two tokens are W_i h and W_j h. Where their rows are the same, so are the logits, whatever
a pair below the head makes of h. Tokens that a model never saw in its training often share one row.
"""

from typing import Any

import torch

# Rows that differ by less than rounding in 16 bits.
_SAME = 1e-3


@torch.no_grad()
def twin_of(model: Any, token: int) -> int | None:
    """Another token with the same row in the output head, or None.

    Two rows are the same where ‖W_i − W_j‖ ≤ 10⁻³ ‖W_i‖ (and the biases are equal).

    Args:
        model: a causal language model with a dense output head; any other has no twins.
        token: an id.
    """
    head = model.get_output_embeddings()
    weight_VD = getattr(head, "weight", None)
    if weight_VD is None or not weight_VD.is_floating_point() or token >= len(weight_VD):
        return None
    own_D = weight_VD[token]
    most = _SAME * float(own_D.float().norm())
    # One block of rows at a time: a copy of the whole head in 32 bits may not fit.
    for start in range(0, len(weight_VD), 8192):
        rows = weight_VD[start : start + 8192]
        near = ((rows - own_D).float().norm(dim=1) <= most).nonzero().flatten() + start
        for other in near.tolist():
            bias = getattr(head, "bias", None)
            if other != token and (bias is None or bias[other] == bias[token]):
                return int(other)
    return None
