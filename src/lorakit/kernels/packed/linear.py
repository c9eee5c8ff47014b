"""A linear layer whose frozen weight is packed, in the place of a `torch.nn.Linear`.

It is one by class, so that whatever looks for linear layers by class finds it, and keeps no parameter
of that name: the packing's tensors are buffers (held.py).
"""

from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear
from lorakit.kernels.packed.held import HoldsPacked
from lorakit.kernels.packed.packing import Packing, whole
from lorakit.kernels.packed.weight import PackedWeight


class PackedLinear(HoldsPacked, nn.Linear):
    """y = W x + b with a packed W, which gets no gradient; x gets its own.

    Attributes:
        in_features, out_features: of W.
        bias: as of a linear layer, in the format of the products.
    """

    def __init__(self, packing: Packing, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = packing.shape
        self._hold(packing, dict(packing.tensors), dtype)
        self._kept: tuple[tuple[Tensor, ...], PackedWeight] | None = None
        kept = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self.register_parameter("bias", kept)

    @property
    def packing(self) -> Packing:
        """Of the tensors as they are now: moved and loaded ones too."""
        return self._packing.over(self.held)

    @property
    def frozen(self) -> PackedWeight:
        """The weight as the products take it: the same one as long as the tensors are."""
        tensors, kept = tuple(map(self.get_buffer, self._names)), self._kept
        if kept is None or kept[1].dtype != self._dtype or not all(map(is_, kept[0], tensors)):
            kept = tensors, PackedWeight(self.packing, self._dtype)
            self._kept = kept
        return kept[1]

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

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses."""
        return {**self.__dict__, "_kept": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        packing = self.packing
        copied = packing.over({name: tensor.clone() for name, tensor in packing.tensors.items()})
        bias = None if self.bias is None else self.bias.detach().clone()
        twin = type(self)(copied, self._dtype, bias)
        memo[id(self)] = twin
        return twin.train(self.training)


class PackedConv1D(PackedLinear):
    """GPT-2's linear layer, whose weight is kept as (in, out): packed as (out, in), as any other."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W dequantized, (in, out), as a new tensor each time it is read."""
        return whole(self.packing, self._dtype).t()
