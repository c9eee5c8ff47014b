"""silu(g)·u and its gradients in Triton, one pass each (SwiGLU, arXiv 2002.05202).

    forward     a = silu(g) u                                  silu(g) = g σ(g)
    backward    dg = da u σ(g) (1 + g (1 - σ(g))),  du = da silu(g),  and a once more

Legend: T tokens, M width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def gated(g_TM: Tensor, u_TM: Tensor) -> Tensor:
    """silu(g)·u, computed in float32 and rounded once: a new (T, M)."""
    g, u = g_TM.contiguous(), u_TM.contiguous()
    out = torch.empty_like(g)
    _gated[(triton.cdiv(g.numel(), _BLOCK),)](g, u, out, g.numel(), BLOCK=_BLOCK)
    return out


def gated_gradients(grad_TM: Tensor, g_TM: Tensor, u_TM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(g)·u, the gradient of g, and that of u, which takes the place of `grad`."""
    grad, g, u = (x.contiguous() for x in (grad_TM, g_TM, u_TM))
    act, of_g = torch.empty_like(g), torch.empty_like(g)
    _gradients[(triton.cdiv(g.numel(), _BLOCK),)](grad, g, u, act, of_g, g.numel(), BLOCK=_BLOCK)
    return act, of_g, grad


@triton.jit
def _gated(g, u, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(grad, g, u, act, of_g, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    da = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    silu = gate * sigma
    tl.store(act + at, (silu * up).to(act.dtype.element_ty), mask=inside)
    dg = da * up * sigma * (1.0 + gate * (1.0 - sigma))
    tl.store(of_g + at, dg.to(of_g.dtype.element_ty), mask=inside)
    tl.store(grad + at, (da * silu).to(grad.dtype.element_ty), mask=inside)
