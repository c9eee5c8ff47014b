"""The singular values of s·B·A, and the best pair of a lower rank, without forming the product.

    B = Q_B R_B     Aᵀ = Q_A R_A     s · R_B R_Aᵀ = u S v      (an SVD of r x r)
    s·B·A = (Q_B u) · S · (v Q_Aᵀ)

Its cost is O((in + out)·r²) and not O(in·out·min(in, out)). Cutting after k singular values is the
nearest matrix of rank k, and the squared error is the sum of the squares that were cut (Eckart and
Young, 1936). Everything here is computed in float64: a value far below the largest is lost in
float32.

Legend: R rank, O out, I in (channels times kernel of a convolution).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lorakit.lora.limits import check_cut


def spectrum(A: Tensor, B: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of s·B·A in float64.

    Args:
        A: (R, in…), a convolution's kernel among it.
        B: (O, R…).
        s: the scale; a negative one is taken up by U.

    Returns:
        U (O, K), S (K,) from the largest down, Vh (K, I); K = min(R, O, I).

    >>> A, B = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0], [2.0]])
    >>> spectrum(A, B, 0.5)[1]
    tensor([5.], dtype=torch.float64)
    """
    Q_B, R_B = torch.linalg.qr(B.detach().double().flatten(1))
    Q_A, R_A = torch.linalg.qr(A.detach().double().flatten(1).T)
    u, S, v = torch.linalg.svd(s * R_B @ R_A.T, full_matrices=False)
    return Q_B @ u, S, v @ Q_A.T


def cut(
    A: Tensor, B: Tensor, s: float, *, rank: int | None = None, energy: float | None = None
) -> tuple[Tensor, Tensor]:
    """The pair A', B' whose product B'·A' (scale 1) is the nearest to s·B·A, in float64.

    Each takes the square root of the singular values, so that neither is the larger.

    Args:
        A, B, s: as for `spectrum`.
        rank: at most this many singular values.
        energy: as few as hold this share of the sum of squares; with `rank` the fewer count.

    Returns:
        A' (k, in…), B' (O, k…).

    Raises:
        ConfigError: neither is given, or one is out of range.
    """
    U, S, Vh = spectrum(A, B, s)
    return factors(U, S, Vh, kept(S, rank=rank, energy=energy), A, B)


def factors(
    U: Tensor, S: Tensor, Vh: Tensor, k: int, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor]:
    """The first k singular values as a pair in the layout of A and B (a convolution's kernel)."""
    root = S[:k].sqrt()
    new_A = (root[:, None] * Vh[:k]).reshape(k, *A.shape[1:])
    new_B = (U[:, :k] * root).reshape(B.shape[0], k, *B.shape[2:])
    return new_A, new_B


def kept(S: Tensor, *, rank: int | None = None, energy: float | None = None) -> int:
    """How many singular values a rank or a share of the energy keeps; at least one.

    >>> kept(torch.tensor([3.0, 2.0, 1.0]), energy=0.9)
    2

    Raises:
        ConfigError: neither is given, or one is out of range.
    """
    check_cut(rank, energy)
    k = len(S) if rank is None else min(rank, len(S))
    if energy is not None:
        squares = S.double().square()
        # The left-out tail is summed from its small end: 1 - energy is what may be lost.
        lost = squares.flip(0).cumsum(0).flip(0)
        allowed = (1.0 - energy) * squares.sum()
        k = min(k, int((lost > allowed).sum()))
    return max(k, 1)


def global_threshold(
    spectra: Mapping[str, Tensor], *, rank: int | None = None, energy: float | None = None
) -> dict[str, int]:
    """One threshold on the singular values of all modules: how many each of them keeps.

    Of all ways to spend a number of singular values over the modules, keeping the largest ones
    leaves the smallest sum of squared errors, since each module's error is the sum of the squares
    that it loses. Every module keeps at least one, because a pair has a rank of at least one.

    Args:
        spectra: S of each module, from the largest down.
        rank: the mean rank: modules times this are kept.
        energy: as few as hold this share of the sum of squares over all modules.

    Returns:
        Rank of each module.

    Raises:
        ConfigError: neither is given, or one is out of range.
    """
    check_cut(rank, energy)
    names = list(spectra)
    rest = torch.cat([spectra[name][1:] for name in names])
    owner = torch.cat(
        [torch.full((len(spectra[name]) - 1,), i, dtype=torch.long) for i, name in enumerate(names)]
    )
    values, order = rest.sort(descending=True, stable=True)
    more = len(values) if rank is None else min((rank - 1) * len(names), len(values))
    if energy is not None:
        total = sum(float(S.double().square().sum()) for S in spectra.values())
        lost = values.double().square().flip(0).cumsum(0).flip(0)
        more = min(more, int((lost > (1.0 - energy) * total).sum()))
    counts = torch.bincount(owner[order[:more]], minlength=len(names))
    return {name: 1 + int(count) for name, count in zip(names, counts, strict=True)}
