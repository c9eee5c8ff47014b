"""Causal attention over packed sequences by flash kernels that take them end to end, on a GPU.

The sequences are neither padded nor copied: a kernel reads where each begins (`Bounds`). Two libraries have
one: torch (`torch.nn.attention.varlen`, 2.10 and later), and flash-attn where it is installed, which can cap
scores too (arXiv 2205.14135 and 2307.08691). Both take 16 bits, heads of up to 256 elements in multiples of
8, values as wide as keys. Whether the device has such a kernel, and whether it gives what torch's attention
on padded groups gives, is found by trying it once for each shape of heads; where not, one line says so.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lorakit.kernels.layout import Bounds, Layout

_log = logging.getLogger("lorakit.kernels")
FORMATS = (torch.bfloat16, torch.float16)
_WIDEST, _MULTIPLE = 256, 8
_TRIED, _WINDOW = (5, 130, 64), 33
"""Tokens of the sequences that are tried (shorter than a kernel's tile, longer, and as long), and of the window."""

Kernel = Callable[[Tensor, Tensor, Tensor, Bounds, float, int | None, float | None], Tensor]
"""(q, k, v, bounds, scale, window, soft cap) -> (T, H, D)."""
Padded = Callable[[Tensor, Tensor, Tensor, Layout, float, int | None, float | None], Tensor]
"""The same by torch's attention on padded groups: the oracle."""

_right: dict[tuple[Any, ...], bool] = {}


def attended(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    where: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
    padded: Padded,
) -> Tensor | None:
    """Attention by a varlen kernel, (T, H, D); None where there is none for such heads.

    Args:
        q_THD, k_TKD, v_TKD, where, scale, window, softcap: as `attention.attend` has them.
        padded: what a kernel is held against before it is used.
    """
    kernel = _kernel_for(q_THD, k_TKD, v_TKD, softcap)
    if kernel is None:
        return None
    known = (q_THD.device, q_THD.dtype, *q_THD.shape[1:], k_TKD.shape[1])
    known = (*known, window is not None, softcap is not None)
    if known not in _right:
        if q_THD.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # nothing can be compared while a graph is captured
        _right[known] = _tried(kernel, q_THD, k_TKD, scale, window, softcap, padded)
    if not _right[known]:
        return None
    return kernel(q_THD, k_TKD, v_TKD, where.bounds(len(q_THD)), scale, window, softcap)


def _kernel_for(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, softcap: float | None
) -> Kernel | None:
    width = q_THD.shape[2]
    at_home = (
        _at_home(q_THD.device)
        and q_THD.dtype in FORMATS
        and width == v_TKD.shape[2]
        and width <= _WIDEST
        and width % _MULTIPLE == 0
        and os.environ.get("LORAKIT_KERNELS") != "plain"
    )
    if not at_home:
        return None
    return _torch_kernel() if softcap is None and _torch_kernel() else _flash_attn_kernel()


def _at_home(device: torch.device) -> bool:
    return device.type == "cuda"


@functools.cache
def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None

    def run(
        q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, s: float, window: int | None, _: object
    ) -> Tensor:
        # A window of w tokens is the token itself and w - 1 to its left; (-1, 0) is all before it.
        left = -1 if window is None else window - 1
        starts, longest = bounds.starts, bounds.longest
        out = varlen_attn(
            *(q, k, v, starts, starts, longest, longest),
            scale=s,
            window_size=(left, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, Tensor)
        return out

    return run


@functools.cache
def _flash_attn_kernel() -> Kernel | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bounds: Bounds,
        s: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        starts, longest = bounds.starts, bounds.longest
        out: Tensor = flash_attn_varlen_func(
            *(q, k, v, starts, starts, longest, longest),
            softmax_scale=s,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            softcap=softcap or 0.0,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out

    return run


def _tried(
    kernel: Kernel,
    like_THD: Tensor,
    keys_TKD: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    padded: Padded,
) -> bool:
    """Whether output and gradients are those of the oracle, on random heads of this shape."""
    device, dtype, width = like_THD.device, like_THD.dtype, like_THD.shape[2]
    generator, tokens = torch.Generator().manual_seed(0), sum(_TRIED)
    heads = like_THD.shape[1], keys_TKD.shape[1], keys_TKD.shape[1]
    drawn = [torch.randn(tokens, n, width, generator=generator).to(device, dtype) for n in heads]
    grad = torch.randn(tokens, heads[0], width, generator=generator).to(device, dtype)
    where = Layout(_TRIED, device)
    window = None if window is None else _WINDOW

    def results(compute: Callable[..., Tensor], of: Any) -> list[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [x.clone().requires_grad_() for x in drawn]
            out = compute(*leaves, of, scale, window, softcap)
            return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    expected = results(padded, where)
    try:
        answer = results(kernel, where.bounds(tokens))
    except Exception as error:  # no such kernel for this device, and the like
        said = str(error).strip().splitlines() or [""]
        return _left(width, f"{type(error).__name__}: {said[-1]}")
    for one, other in zip(answer, expected, strict=True):
        apart = float((one.float() - other.float()).abs().max() / other.float().abs().max())
        if not apart < 3e-2:
            return _left(width, f"it differs by {apart:.1e} of the largest element")
    _log.info("heads of %d elements are packed for attention", width)
    return True


def _left(width: int, reason: str) -> bool:
    _log.warning("heads of %d elements are padded for attention, not packed: %s", width, reason)
    return False
