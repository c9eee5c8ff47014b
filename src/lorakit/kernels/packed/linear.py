"""A linear layer whose frozen weight is packed, in the place of a `torch.nn.Linear`.

It is one by class, so that whatever looks for linear layers by class finds it, and keeps no parameter
of that name: the packing's tensors are buffers, which `state_dict`, `to` and `load_state_dict` know.
A cast to another float dtype changes the format of the products and none of these tensors.
"""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear
from lorakit.kernels.packed.packing import Packing, nbytes, whole
from lorakit.kernels.packed.weight import LARGEST, PackedWeight


class PackedLinear(nn.Linear):
    """y = W x + b with a packed W, which gets no gradient; x gets its own.

    Attributes:
        in_features, out_features: of W.
        bias: as of a linear layer, in the format of the products.
    """

    def __init__(self, packing: Packing, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = packing.shape
        self._packing, self._names = packing, tuple(packing.tensors)
        self._dtype = dtype
        self._kept: tuple[tuple[Tensor, ...], PackedWeight] | None = None
        for name, tensor in packing.tensors.items():
            self.register_buffer(name, tensor)
        kept = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self.register_parameter("bias", kept)

    @property
    def packing(self) -> Packing:
        """Of the tensors as they are now: moved and loaded ones too."""
        return self._packing.over({name: self.get_buffer(name) for name in self._names})

    @property
    def frozen(self) -> PackedWeight:
        """The weight as the products take it: the same one as long as the tensors are."""
        tensors, kept = tuple(map(self.get_buffer, self._names)), self._kept
        if kept is None or kept[1].dtype != self._dtype or not all(map(is_, kept[0], tensors)):
            kept = tensors, PackedWeight(self.packing, self._dtype)
            self._kept = kept
        return kept[1]

    @property
    def elements(self) -> int:
        """Elements of W: what counts as the layer's parameters beside its bias."""
        return self.out_features * self.in_features

    @property
    def packed_bytes(self) -> int:
        """Bytes that W takes."""
        return nbytes(self.packing)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of a block of W in the format of the products."""
        return min(self.elements, LARGEST) * self._dtype.itemsize

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dequantized, as a new tensor each time it is read: costly, and no parameter."""
        return whole(self.packing, self._dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        if not (torch.is_grad_enabled() and input.requires_grad):
            y = self.frozen.product(input.reshape(-1, self.in_features))
            y = y if self.bias is None else y.add_(self.bias)
            return y.view(*input.shape[:-1], self.out_features)
        return linear(input, Linear(self.frozen, self.bias))

    def reset_parameters(self) -> None:
        """Nothing: a packed weight is never initialised."""

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{super().extra_repr()}, packing={self._packing.name}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        """Move: what `to`, `cuda`, `half` and their like call with a function of one tensor."""
        kept = {name: self.get_buffer(name) for name in self._names}
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            moved = self.get_buffer(name)
            if moved.dtype != tensor.dtype:  # a scale that was cast with the model's own weights
                self._buffers[name] = tensor.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses."""
        return {**self.__dict__, "_kept": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        packing = self.packing
        copied = packing.over({name: tensor.clone() for name, tensor in packing.tensors.items()})
        bias = None if self.bias is None else self.bias.detach().clone()
        twin = PackedLinear(copied, self._dtype, bias)
        memo[id(self)] = twin
        return twin.train(self.training)
