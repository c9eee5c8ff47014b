"""What all modules that hold packed weights have in common: buffers that are moved and never cast."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.kernels.packed.packing import Packing
from lorakit.kernels.packed.weight import LARGEST


class HoldsPacked(nn.Module):
    """A module whose packed tensors are buffers, which `state_dict`, `to` and `load_state_dict` know.

    A cast to another float dtype changes the format of the products and none of these tensors.
    """

    _packing: Packing
    _names: tuple[str, ...]
    _dtype: torch.dtype

    def _hold(self, packing: Packing, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Keep these tensors, which are of the packing or many of it."""
        self._packing, self._names, self._dtype = packing, tuple(tensors), dtype
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @property
    def held(self) -> dict[str, Tensor]:
        """The packed tensors as they are now: moved and loaded ones too."""
        return {name: self.get_buffer(name) for name in self._names}

    @property
    def packing_name(self) -> str:
        """What people call the packing: "nf4"."""
        return self._packing.name

    @property
    def elements(self) -> int:
        """How many numbers it stands for: what counts as its parameters."""
        out, width = self._packing.shape
        return out * width

    @property
    def packed_bytes(self) -> int:
        """Bytes that the packed tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.held.values())

    @property
    def workspace_bytes(self) -> int:
        """Bytes of a block of a matrix in the format of the products."""
        out, width = self._packing.shape
        return min(out * width, LARGEST) * self._dtype.itemsize

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move: what `to`, `cuda`, `half` and their like call with a function of one tensor."""
        kept = self.held
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        super()._apply(cast(Any, fn), recurse)
        for name, tensor in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != tensor.dtype:  # a scale that was cast with the model's own weights
                self._buffers[name] = tensor.to(moved.device)
        return self
