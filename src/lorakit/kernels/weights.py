"""What the weight of a frozen layer must do for the products around it.

A dense matrix is the only one today. An int8 or NF4 weight, one that is sharded over processes, or
one packed for a compiled kernel implements the same five methods and nothing else changes.

Legend: T rows, I in_features, O out_features.
"""

from typing import Protocol

import torch
from torch import Tensor

from lorakit.kernels import products


class FrozenWeight(Protocol):
    """A frozen matrix W of shape (out_features, in_features)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""

    @property
    def dtype(self) -> torch.dtype:
        """The number format that products with W are computed in."""

    @property
    def device(self) -> torch.device:
        """Where W lies."""

    def product(self, x_TI: Tensor, onto_TO: Tensor | None = None) -> Tensor:
        """X Wᵀ, or onto + x Wᵀ, as a new tensor (T, O)."""

    def add_product(self, y_TO: Tensor, x_TI: Tensor) -> None:
        """Y += x Wᵀ, in place."""

    def input_gradient(self, grad_TO: Tensor) -> Tensor:
        """G W, the gradient of x, as a new tensor (T, I)."""

    def add_input_gradient(self, grad_TI: Tensor, grad_TO: Tensor) -> None:
        """The gradient of x += g W, in place."""

    def rows(self, start: int, stop: int) -> Tensor:
        """W[start:stop] in float32 at least, (stop - start, I): for merging and certificates."""


class DenseWeight:
    """W as an ordinary tensor, of any strides: the transposed view of a (in, out) weight will do.

    Attributes:
        tensor: (out_features, in_features).
    """

    def __init__(self, tensor_OI: Tensor) -> None:
        self.tensor = tensor_OI

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        rows, columns = self.tensor.shape
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Of the tensor."""
        return self.tensor.device

    def product(self, x_TI: Tensor, onto_TO: Tensor | None = None) -> Tensor:
        """X Wᵀ, or onto + x Wᵀ, as a new tensor (T, O)."""
        return products.product(x_TI, self.tensor.t(), onto_TO)

    def add_product(self, y_TO: Tensor, x_TI: Tensor) -> None:
        """Y += x Wᵀ, in place."""
        products.add_product(y_TO, x_TI, self.tensor.t())

    def input_gradient(self, grad_TO: Tensor) -> Tensor:
        """G W, as a new tensor (T, I)."""
        return products.product(grad_TO, self.tensor)

    def add_input_gradient(self, grad_TI: Tensor, grad_TO: Tensor) -> None:
        """The gradient of x += g W, in place."""
        products.add_product(grad_TI, grad_TO, self.tensor)

    def rows(self, start: int, stop: int) -> Tensor:
        """W[start:stop] in float32 at least, (stop - start, I)."""
        part = self.tensor[start:stop]
        return part.to(torch.promote_types(part.dtype, torch.float32))
