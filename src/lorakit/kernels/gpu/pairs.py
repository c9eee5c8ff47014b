"""The products with a rank on a GPU, each kernel of low_rank.py beside its plain twin.

What they are for is in low_rank.py, which needs Triton; here is what the linear layers call.

Legend: T rows, N wide, R rank.
"""

from torch import Tensor, addmm

from lorakit.kernels.gpu import dispatch


def project(x_TN: Tensor, matrix_RN: Tensor, scale: float = 1.0) -> Tensor:
    """x (s·M)ᵀ, (T, R)."""
    out: Tensor = dispatch.run("project", _project, x_TN, matrix_RN, scale)
    return out


def expand(
    h_TR: Tensor, matrix_RN: Tensor, scale: float = 1.0, onto_TN: Tensor | None = None
) -> Tensor:
    """h (s·M), or onto + h (s·M), as a new tensor (T, N)."""
    out: Tensor = dispatch.run("expand", _expand, h_TR, matrix_RN, scale, onto_TN)
    return out


def outer(h_TR: Tensor, x_TN: Tensor, scale: float = 1.0, *, turn: bool = False) -> Tensor:
    """s·hᵀ x in float32, (R, N), or (N, R) with `turn`."""
    out: Tensor = dispatch.run("outer", _outer, h_TR, x_TN, scale, turn)
    return out


def _project(x_TN: Tensor, matrix_RN: Tensor, scale: float) -> Tensor:
    return x_TN @ (scale * matrix_RN).to(x_TN.dtype).t()


def _expand(h_TR: Tensor, matrix_RN: Tensor, scale: float, onto_TN: Tensor | None) -> Tensor:
    matrix = (scale * matrix_RN).to(h_TR.dtype)
    return h_TR @ matrix if onto_TN is None else addmm(onto_TN, h_TR, matrix)


def _outer(h_TR: Tensor, x_TN: Tensor, scale: float, turn: bool) -> Tensor:
    product_RN = (h_TR.t() @ x_TN).float() * scale
    return product_RN.t() if turn else product_RN
