"""Initialisations of A and B at random: Kaiming and gaussian are the variant's own, orthogonal is here.

Torch is imported where it computes: a `LoraSpec` asks for its initialisation before torch is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.lora.initialisation import ANY, Initialisation, LayerStart

if TYPE_CHECKING:
    from torch import Tensor


def orthogonal(at: LayerStart) -> tuple[Tensor, Tensor]:
    """A and B of rank r/2 each, in subspaces of the rank that are orthogonal, so that B A = 0.

    With Q orthogonal (r, r), its even rows Q₀ and its odd rows Q₁, G and H standard normal:

        A = (G Q₀)ᵀ / 10, G (in, r/2)      B = H Q₁ / 10, H (out, r/2)

    as peft's. Neither is zero, and A moves from the first step on. Of an odd rank Q₀ has one row more.
    """
    import torch

    out_features, in_features = at.weight().shape

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(generator=at.generator)

    Q, _ = torch.linalg.qr(draw(at.rank, at.rank).double())
    even, odd = Q[0::2], Q[1::2]
    A = (draw(in_features, len(even)).double() @ even).T / 10.0
    B = draw(out_features, len(odd)).double() @ odd / 10.0
    return A, B


KAIMING = Initialisation("kaiming", "A uniform with a = sqrt 5, B zero", kinds=ANY)
GAUSSIAN = Initialisation("gaussian", "A of standard deviation 1 / rank, B zero", kinds=ANY)
ORTHOGONAL = Initialisation(
    "orthogonal", "A and B in orthogonal halves of the rank, which must be 2 at least", orthogonal
)
