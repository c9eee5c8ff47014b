"""Packed linear layers that share their input, as one product: what decoding one token multiplies by.

    y = (W_0 x + b_0, W_1 x + b_1, …)

Few rows are multiplied by the compiled kernels in one call, which read every code once; many rows, and
wherever there are no such kernels, by each weight in turn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.kernels.packed import compiled
from lorakit.kernels.packed.linear import PackedLinear


class JointWeight:
    """Layers under one another, alike in bias.

    Args:
        layers: of one input width; their tensors are taken as they are now.
    """

    def __init__(self, layers: Sequence[PackedLinear]) -> None:
        self._weights = [layer.frozen for layer in layers]
        described = [weight.description for weight in self._weights]
        self._described = [each for each in described if each is not None]
        if len(self._described) < len(described) or len({d.turns for d in self._described}) > 1:
            self._described = []
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The outputs side by side, (T, O), as a new tensor."""
        y_TO = compiled.product(self._described, x_TI) if self._described else None
        if y_TO is None:
            y_TO = torch.cat([weight.product(x_TI) for weight in self._weights], dim=1)
        return y_TO if self._bias is None else y_TO.add_(self._bias)
