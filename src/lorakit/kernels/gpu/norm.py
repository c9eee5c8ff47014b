"""RMSNorm in Triton: norm(x) = w · x / sqrt(mean(x²) + ε), a row of x to a program.

    forward     r = 1 / sqrt(mean(x²) + ε),  n = w · (x r)           x r rounded to x's format, as transformers does
    backward    u = g · w,  dx = r u - x r³ mean(u · x) [+ onto],  dw = Σ_t g · (x r)

All sums are in float32. Legend: T rows, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 4096
_ROWS = 128  # of which a program sums the gradient of the weight


def normed(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """norm(x) in x's format, and 1 / sqrt(mean(x²) + ε) in float32: (T, D) and (T, 1)."""
    x_TD, weight_D = _rows(x_TD), weight_D.contiguous()
    rstd_T1 = torch.empty(x_TD.shape[0], 1, dtype=torch.float32, device=x_TD.device)
    return _forward(x_TD, weight_D, rstd_T1, eps, known=False), rstd_T1


def norm_again(x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor) -> Tensor:
    """norm(x), given 1 / sqrt(mean(x²) + ε): (T, D)."""
    return _forward(_rows(x_TD), weight_D.contiguous(), rstd_T1.contiguous(), 0.0, known=True)


def norm_gradients(
    grad_TD: Tensor,
    x_TD: Tensor,
    weight_D: Tensor,
    rstd_T1: Tensor,
    onto_TD: Tensor | None,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, `onto` added to it, and of the weight.

    Args:
        grad_TD: of norm(x). The gradient of x takes its place.
        x_TD, weight_D, rstd_T1: of the forward.
        onto_TD: what x has as a gradient from elsewhere, or None.
        wants_weight: whether the weight's is asked for; else None.
    """
    grad_TD, x_TD, weight_D = _rows(grad_TD), _rows(x_TD), weight_D.contiguous()
    rows, width = x_TD.shape
    of_weight = None
    if wants_weight:
        parts = triton.cdiv(rows, _ROWS)
        partial_PD = torch.empty(parts, width, dtype=torch.float32, device=x_TD.device)
        _weight_gradient[(parts, triton.cdiv(width, 128))](
            *(grad_TD, x_TD, rstd_T1, partial_PD),
            *(grad_TD.stride(0), x_TD.stride(0), rows, width),
            ROWS=_ROWS,
            BLOCK=128,
        )
        of_weight = partial_PD.sum(0).to(weight_D.dtype)
    onto = grad_TD if onto_TD is None else _rows(onto_TD)
    _input_gradient[(rows,)](
        *(grad_TD, x_TD, weight_D, rstd_T1, onto),
        *(grad_TD.stride(0), x_TD.stride(0), onto.stride(0), width),
        ADDED=onto_TD is not None,
        BLOCK=_block(width),
    )
    return grad_TD, of_weight


def _forward(x_TD: Tensor, weight_D: Tensor, rstd_T1: Tensor, eps: float, *, known: bool) -> Tensor:
    n_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    _norm[(x_TD.shape[0],)](
        *(x_TD, weight_D, n_TD, rstd_T1),
        *(x_TD.stride(0), x_TD.shape[1], eps),
        KNOWN=known,
        BLOCK=_block(x_TD.shape[1]),
    )
    return n_TD


def _rows(x_TD: Tensor) -> Tensor:
    """Itself where the elements of a row are neighbours, else a copy where they are."""
    return x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()


def _block(width: int) -> int:
    return min(_WIDEST, triton.next_power_of_2(width))


@triton.jit
def _norm(x, weight, n, rstd, x_stride, width, eps, KNOWN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    n += row * width
    columns = tl.arange(0, BLOCK)
    if KNOWN:
        r = tl.load(rstd + row)
    else:
        squares = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            at = start + columns
            value = tl.load(x + at, mask=at < width, other=0.0).to(tl.float32)
            squares += value * value
        r = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + eps)
        tl.store(rstd + row, r)
    for start in range(0, width, BLOCK):
        at = start + columns
        inside = at < width
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        quotient = (value * r).to(n.dtype.element_ty).to(tl.float32)
        tl.store(n + at, (quotient * w).to(n.dtype.element_ty), mask=inside)


@triton.jit
def _input_gradient(
    grad, x, weight, rstd, onto, grad_stride, x_stride, onto_stride, width,
    ADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    grad += row * grad_stride
    x += row * x_stride
    onto += row * onto_stride
    columns = tl.arange(0, BLOCK)
    r = tl.load(rstd + row)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + columns
        inside = at < width
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        products += g * w * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(products, axis=0) / width * r * r * r
    for start in range(0, width, BLOCK):
        at = start + columns
        inside = at < width
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        dx = r * g * w - value * mean
        if ADDED:
            dx += tl.load(onto + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + at, dx.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _weight_gradient(
    grad, x, rstd, partial, grad_stride, x_stride, rows, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, ROWS, 32):
        row = part * ROWS + start + tl.arange(0, 32)
        here = (row[:, None] < rows) & (at[None, :] < width)
        g = tl.load(grad + row[:, None] * grad_stride + at[None, :], mask=here, other=0.0)
        value = tl.load(x + row[:, None] * x_stride + at[None, :], mask=here, other=0.0)
        r = tl.load(rstd + row, mask=row < rows, other=0.0)
        total += tl.sum(g.to(tl.float32) * value.to(tl.float32) * r[:, None], axis=0)
    tl.store(partial + part * width + at, total, mask=at < width)
