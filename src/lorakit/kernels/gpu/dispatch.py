"""Which function computes: a Triton kernel where it is at home and was seen to be right, else its plain twin.

A kernel is at home on a CUDA device with Triton installed (torch's CUDA builds bring it; else the extra
`gpu`), in float32 or 16 bits. Each is held against its plain twin on the first tensors of each format and
width, in the run itself: one that fails or differs is left for the rest of the process, and one line says
so. `LORAKIT_KERNELS=plain` leaves all of them. With `TRITON_INTERPRET=1`, Triton's own switch, they compute
on a CPU too, in its interpreter: slow, for tests.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("lorakit.kernels")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
"""The number formats in which they compute."""
# Where the function of each name is. The modules import Triton, so that they are imported late.
_HOMES = {
    "normed": "norm",
    "norm_again": "norm",
    "norm_gradients": "norm",
    "turned": "rotary",
    "gated": "gated",
    "gated_gradients": "gated",
    "nll_and_slope": "head",
    "project": "low_rank",
    "expand": "low_rank",
    "outer": "low_rank",
}

left: dict[str, str] = {}
"""Kernels that are left for the rest of the process, and why."""
_right: set[tuple[Any, ...]] = set()


def suits(x: Tensor) -> bool:
    """Whether Triton kernels are at home where this tensor is, and in its format."""
    kind = x.device.type
    if kind != "cuda" and (kind != "cpu" or os.environ.get("TRITON_INTERPRET") != "1"):
        return False
    return (
        x.dtype in FORMATS
        and x.numel() > 0
        and os.environ.get("LORAKIT_KERNELS") != "plain"
        and installed()
    )


def run(name: str, plain: Callable[..., Any], *inputs: Any) -> Any:
    """What the kernel of this name gives, or its plain twin where it is not at home or was left.

    Args:
        name: of the kernel.
        plain: the same function by torch's own operations: the oracle.
        inputs: of both; the first is a tensor. Either may write over those that its docstring names.

    Returns:
        A tensor, or a tuple of tensors.
    """
    first: Tensor = inputs[0]
    if name in left or not suits(first):
        return plain(*inputs)
    known = (name, first.device, *(_outline(x, len(first)) for x in inputs))
    if known in _right:
        return _launch(name, first.device, inputs)
    return _tried(name, known, plain, inputs)


def _launch(name: str, device: torch.device, inputs: tuple[Any, ...]) -> Any:
    kernel = getattr(importlib.import_module(f"lorakit.kernels.gpu.{_HOMES[name]}"), name)
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return kernel(*inputs)
    with torch.cuda.device(device):  # Triton launches on the current device
        return kernel(*inputs)


def _tried(
    name: str, known: tuple[Any, ...], plain: Callable[..., Any], inputs: tuple[Any, ...]
) -> Any:
    """The plain twin's answer, and whether the kernel's was the same on inputs of its own."""
    if inputs[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return plain(*inputs)  # nothing can be compared while a graph is captured
    copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
    expected = plain(*inputs)
    try:
        answer = _launch(name, copies[0].device, copies)
        apart = _apart(answer, expected)
    except Exception as error:  # a compiler that is missing, too little shared memory, and the like
        said = str(error).strip().splitlines() or [""]
        _leave(name, f"{type(error).__name__}: {said[-1]}")
        return expected
    if apart is None:  # nothing to compare: what is not finite stays so either way
        return expected
    if apart > _limit(copies[0].dtype):
        _leave(
            name, f"it differs by {apart:.1e} of the largest element from torch's own operations"
        )
    else:
        _log.info("the GPU kernel %r is used: it differs by %.1e", name, apart)
        _right.add(known)
    return expected


def _limit(dtype: torch.dtype) -> float:
    if dtype != torch.float32:
        return 2e-2
    # Where torch was allowed to round the factors of its products, the kernels are the finer ones.
    return 1e-4 if torch.get_float32_matmul_precision() == "highest" else 1e-2


def _leave(name: str, reason: str) -> None:
    left[name] = reason
    _log.warning("the GPU kernel %r is not used, torch's operations are: %s", name, reason)


def _apart(answer: Any, expected: Any) -> float | None:
    """The largest difference as a share of the largest element; None where the twin's is not finite."""
    ours, theirs = ((x,) if isinstance(x, Tensor) else tuple(x) for x in (answer, expected))
    apart = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one is None and other is None:
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        scale = float(other.abs().max()) if other.numel() else 0.0
        if not scale < float("inf"):
            return None
        difference = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        if not difference <= float("inf"):  # NaN
            return float("inf")
        apart = max(apart, difference / scale if scale else difference)
    return apart


def _outline(value: Any, rows: int) -> Any:
    """What a compiled kernel depends on of an input: format and widths, not the number of rows."""
    if isinstance(value, Tensor):
        shape = tuple(value.shape)
        return value.dtype, shape[1:] if shape[0] == rows else shape, value.stride(-1)
    return type(value)


@functools.cache
def installed() -> bool:
    """Whether Triton is there to be imported."""
    return importlib.util.find_spec("triton") is not None
