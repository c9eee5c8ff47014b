"""The rows of a frozen weight as variants read them: their squared norms, and W Aᵀ."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.weights import FrozenWeight
from lorakit.lora.kinds import Geometry

_BLOCK = 1 << 20
"""Elements of W that are read at a time."""


class DenseRows:
    """Of a tensor W, (out_features, in_features, *kernel), of any strides."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def squares(self) -> Tensor:
        """‖W_o‖² of each row, (out_features,), float32 at least."""
        return torch.cat([block.square().sum(dim=1) for block in self._blocks()])

    def products(self, A: Tensor) -> Tensor:
        """W Aᵀ, (out_features, rank), float32 at least."""
        return torch.cat([block @ A.flatten(1).t().to(block.dtype) for block in self._blocks()])

    def _blocks(self) -> Iterator[Tensor]:
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        for part in self.weight.split(_rows_of(self.weight)):
            yield part.to(kind).flatten(1)


class PackedRows(DenseRows):
    """Of a packed W: a block of rows is dequantized at a time."""

    def __init__(self, weight: FrozenWeight) -> None:
        self.frozen = weight

    def _blocks(self) -> Iterator[Tensor]:
        out, width = self.frozen.shape
        many = max(1, _BLOCK // max(width, 1))
        for start in range(0, out, many):
            yield self.frozen.rows(start, min(start + many, out))


class BaseRows:
    """Of the weight of a base layer; the squares are computed once, as the weight is frozen.

    Attributes:
        base: the layer.
        geometry: its own.
    """

    def __init__(self, geometry: Geometry, base: nn.Module) -> None:
        self.geometry, self.base = geometry, base
        self._known: tuple[Any, Tensor] | None = None

    def squares(self) -> Tensor:
        """‖W_o‖² of each row, (out_features,), float32 at least."""
        key = tuple(_identity(tensor) for tensor in self._tensors())
        if self._known is None or self._known[0] != key:
            with torch.no_grad():
                self._known = key, self._rows().squares()
        return self._known[1]

    def products(self, A: Tensor) -> Tensor:
        """W Aᵀ, (out_features, rank), float32 at least."""
        return self._rows().products(A)

    def _rows(self) -> DenseRows:
        if isinstance(self.base, PackedLinear):
            return PackedRows(self.base.frozen)
        return DenseRows(self.geometry.standard(self.geometry.weight(self.base)))

    def _tensors(self) -> list[Tensor]:
        if isinstance(self.base, PackedLinear):
            return list(self.base.packing.tensors.values())
        return [self.geometry.weight(self.base)]


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Changes where the weight is moved, cast, or written by somebody."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def _rows_of(weight: Tensor) -> int:
    return max(1, _BLOCK // max(1, weight[0].numel()))
