"""Initialisations that begin inside the weight: PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775).

    W = U S Vᵀ      A₀ = (S_r / s)^½ V_rᵀ      B₀ = U_r (S_r / s)^½       PiSSA: s·B₀ A₀ is W's best of rank r
    W = Q R         A₀ = R[:r]                 B₀ = Q[:, :r]              OLoRA

The base keeps its bytes: see `initialisation.py`. Torch is imported where it computes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lorakit.errors import ConfigError
from lorakit.lora.initialisation import Initialisation, LayerStart

if TYPE_CHECKING:
    from torch import Tensor

FAST = "pissa_niter_"


def pissa(at: LayerStart, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """The r largest singular values and vectors of W, in equal parts in A and B."""
    import torch

    W = at.weight()
    if iterations is None:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    else:
        U, S, Vh = fast_svd(at, W, iterations)
    root = (S[: at.rank] / at.scale).sqrt()
    return root[:, None] * Vh[: at.rank], U[:, : at.rank] * root


def fast_svd(at: LayerStart, W: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, Vᵀ of rank r by subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4)."""
    import torch

    draw = torch.empty(W.shape[1], at.rank).normal_(generator=at.generator)
    Q, _ = torch.linalg.qr(W @ draw.to(W))
    for _ in range(iterations):
        Q, _ = torch.linalg.qr(W.T @ Q)
        Q, _ = torch.linalg.qr(W @ Q)
    U, S, Vh = torch.linalg.svd(Q.T @ W, full_matrices=False)
    return Q @ U, S, Vh


def olora(at: LayerStart) -> tuple[Tensor, Tensor]:
    """The first r columns of Q and rows of R, W = Q R."""
    import torch

    Q, R = torch.linalg.qr(at.weight())
    return R[: at.rank], Q[:, : at.rank]


def pissa_fast(name: str) -> Initialisation:
    """The initialisation that 'pissa_niter_4' names.

    Raises:
        ConfigError: no whole number follows.
    """
    count = name.removeprefix(FAST)
    if not (count.isascii() and count.isdigit() and len(count) < 4):
        raise ConfigError(
            f"init {name!r}: write {FAST}N with a whole number N of iterations from 0 to 999, such as "
            f"{FAST}4"
        )
    return Initialisation(name, PISSA.help, partial(pissa, iterations=int(count)), splits=True)


PISSA = Initialisation(
    "pissa", "the largest singular values of the weight, by an exact SVD", pissa, splits=True
)
OLORA = Initialisation("olora", "the first columns and rows of W = Q R", olora, splits=True)
