"""How far rounding alone moves a model's logits: what a comparison of two ways to compute may differ by."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorakit.merging.certify import probe_logits

DRAWS = 3


def own_rounding(model: nn.Module, probes: Sequence[Sequence[int]], logits_TV: Tensor) -> float:
    """Largest difference between a model's logits and those of its copies, off in the last bit.

    In a copy every weight, A and B among them, is w·(1 + u·eps) with u uniform in [-1, 1]: off by at
    most one unit in its last place. That is what merging does: it rounds each weight once more, and
    adds the same products in another order, which rounds each of them once more. A wrong merge is
    not in it: no pair is left out, doubled or scaled.

    Args:
        model: in float32 or float64, with or without pairs; not changed.
        probes: sequences of token ids.
        logits_TV: (tokens, vocabulary), float32: the model's own logits of them.
    """
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        shaken = copy.deepcopy(model)
        with torch.no_grad():
            for weight in shaken.parameters():
                if weight.is_floating_point():
                    moves = 2 * torch.rand(weight.shape, generator=generator) - 1
                    weight.mul_(1 + torch.finfo(weight.dtype).eps * moves.to(weight))
        apart = (probe_logits(shaken, probes) - logits_TV).abs().max().item()
        largest = max(largest, apart)
    return largest
