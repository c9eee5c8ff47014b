"""Memory for what a block keeps for its backward, used again in the next step.

Fresh memory costs more than it seems: the system hands it out in zeroed pages of 4 KB, about a microsecond
each, and what 30 blocks keep of a step is several hundred thousand of them. So memory that autograd has
given up is kept here. It is taken for the next block that it is large enough for, and given back to the
system where a larger one is asked for: what is held is never more than one forward pass needed.
"""

import threading
from typing import Any

import torch
from torch import Tensor

from lorakit.kernels.workspace import workspace

# Underscored. Where a torch lacks it nothing is used again, and all memory is fresh.
_owners: Any = getattr(torch._C, "_storage_Use_Count", None)
_STEPS = 16  # sizes for each doubling, so that batches of like length find room


class _Kept(threading.local):
    """What one Python thread holds: memory, and how many owners it has when nobody uses it."""

    def __init__(self) -> None:
        self.slabs: list[Tensor] = []


_kept = _Kept()


def take(size: int, like: Tensor) -> Tensor:
    """So many elements of the dtype of `like`, uninitialised, that nobody else uses.

    The memory is free again when no tensor and no graph refers to it.
    """
    if _owners is None or like.device.type != "cpu":
        return like.new_empty(size)
    free = [s for s in _kept.slabs if _is_free(s)]
    fitting = [s for s in free if s.dtype == like.dtype and s.numel() >= size]
    if fitting:
        return min(fitting, key=Tensor.numel)[:size]
    _kept.slabs = [s for s in _kept.slabs if not _is_free(s)]
    free.clear()
    step = max(1, 1 << max(0, size.bit_length() - _STEPS.bit_length()))
    slab = like.new_empty(-(-size // step) * step)
    _kept.slabs.append(slab)
    return slab[:size]


def forget() -> None:
    """Give back what nobody uses, and what kernels work in: when training has ended."""
    _kept.slabs = [s for s in _kept.slabs if not _is_free(s)]
    workspace.forget()


def held() -> int:
    """Bytes that are held, in use or not."""
    return sum(s.numel() * s.element_size() for s in _kept.slabs)


def _is_free(slab: Tensor) -> bool:
    """Whether this list alone owns the memory: the tensor and the Python storage made to ask."""
    return bool(_owners(slab.untyped_storage()._cdata) <= _ALONE)


_probe = torch.empty(1)
_ALONE: int = 0 if _owners is None else _owners(_probe.untyped_storage()._cdata)
