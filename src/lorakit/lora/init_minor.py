"""MiCA (arXiv 2604.01694): B is the weight's minor left singular vectors and stays, A alone is trained.

    W = U S Vᵀ      B = U[:, -r:], frozen      A = 0

as peft 0.21 has it. Torch is imported where it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorakit.lora.initialisation import Initialisation, LayerStart

if TYPE_CHECKING:
    from torch import Tensor


def mica(at: LayerStart) -> tuple[Tensor, Tensor]:
    """B: the left singular vectors of the r smallest singular values of W; A: zero."""
    import torch

    W = at.weight()
    U, _, _ = torch.linalg.svd(W, full_matrices=False)
    return W.new_zeros(at.rank, W.shape[1]), U[:, -at.rank :]


MICA = Initialisation(
    "mica",
    "B the weight's minor singular vectors, frozen, and A zero",
    mica,
    frozen=frozenset("B"),
    moves="A",
)
