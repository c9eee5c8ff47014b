"""Initialisations from training rows: EVA (arXiv 2410.07170) and LoRA-GA (arXiv 2407.05000).

    EVA      A = the first principal directions of the layer's inputs at supervised tokens, B = 0
    LoRA-GA  ∂L/∂W = U S Vᵀ      A₀ = c·V[:, :r]ᵀ      B₀ = c·U[:, r:2r]      c = out^¼ / √γ, γ = 16

EVA gives a module as many directions as explain the inputs best: `redistributed`. LoRA-GA begins inside
the weight (`initialisation.py`): its first step then moves W along the gradient. Torch is imported
where it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lorakit.lora.initialisation import Initialisation, LayerStart

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = 16


def eva(at: LayerStart) -> tuple[Tensor, Tensor]:
    """A is the evidence, directions (r, in); B is zero."""
    assert at.evidence is not None
    out_features = at.weight().shape[0]
    return at.evidence[: at.rank], at.evidence.new_zeros(out_features, at.rank)


def lora_ga(at: LayerStart) -> tuple[Tensor, Tensor]:
    """A and B of the gradient, which is the evidence, (out, in)."""
    import torch

    assert at.evidence is not None
    U, _, Vh = torch.linalg.svd(at.evidence, full_matrices=False)
    factor = len(at.evidence) ** 0.25 / GAMMA**0.5
    return factor * Vh[: at.rank], factor * U[:, at.rank : 2 * at.rank]


def redistributed(
    explained: Mapping[str, tuple[float, ...]],
    ranks: Mapping[str, int],
    same: Mapping[str, str],
) -> dict[str, int]:
    """Ranks of modules, as many in all as before, given to the directions that explain most.

    As in peft 0.21: of modules that share an input, the first has the highest rank.

    Args:
        explained: of each module the share of its inputs' variance that each direction explains; as
            many directions as its rank may be.
        ranks: as they were asked for.
        same: modules whose input is that of another, with the first of these.

    >>> redistributed({"q": (0.6, 0.3), "k": (0.2, 0.1)}, {"q": 1, "k": 1}, {})
    {'q': 2, 'k': 0}
    """
    each = [(share, path) for path, shares in explained.items() for share in shares]
    each.sort(key=lambda pair: -pair[0])
    counts = dict.fromkeys(explained, 0)
    for _, path in each[: sum(ranks[path] for path in explained)]:
        counts[path] += 1
    for path, first in same.items():
        if counts[first] < counts[path]:
            counts[first], counts[path] = counts[path], counts[first]
    return counts


EVA = Initialisation(
    "eva", "A the main directions of a layer's inputs on training rows, B zero", eva, rows="inputs"
)
LORA_GA = Initialisation(
    "lora_ga",
    "the gradient of the weight on training rows",
    lora_ga,
    splits=True,
    rows="gradients",
    sides=2,
)
