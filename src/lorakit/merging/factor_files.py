"""F · (W + s·B·A) into a file, for variants that give each output a factor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.lora.variant import Variant
from lorakit.merging.tensor_merge import TensorMerge


@dataclass(frozen=True, eq=False)
class FactorMerge(TensorMerge):
    """One tensor to merge whose outputs have factors, which are read off the whole of W in float64.

    Attributes:
        variant: whose factors they are.
        tensors: what it keeps of this module.
        turned: W lies as (in, out), so that a row of it has an element of every output.
    """

    variant: Variant
    tensors: Mapping[str, Tensor]
    turned: bool

    @cached_property
    def factor(self) -> Tensor:
        """F of each output, (out_features,), float64."""
        exact = {name: tensor.detach().double() for name, tensor in self.tensors.items()}
        factor = self.variant.factor(exact, FileRows(self.place, self.turned), self.scale)
        assert factor is not None
        return factor

    def update(self, start: int, stop: int, kind: torch.dtype) -> Tensor:
        """Rows of f · (W + s·B·A) - W."""
        W = shards.read_rows(self.place, start, stop).to(kind)
        return self._of(start, stop, kind) * (W + super().update(start, stop, kind)) - W

    def merged(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows of f · (W + s·B·A), computed in float32 (float64 for wider factors) and rounded once."""
        W = shards.read_rows(self.place, start, stop)
        kind = torch.promote_types(torch.promote_types(W.dtype, self.left.dtype), torch.float32)
        total = W.to(kind) + super().update(start, stop, kind)
        return (self._of(start, stop, kind) * total).to(dtype)

    def reach(self, start: int, stop: int) -> Tensor:
        """2 |f| (|W| + |s| ‖b‖ ‖a‖) of each entry: the factor and the product with it round too."""
        W = shards.read_rows(self.place, start, stop).double().abs()
        factor = self._of(start, stop, torch.float64).abs()
        return 2 * factor * (W + super().reach(start, stop))

    def _of(self, start: int, stop: int, kind: torch.dtype) -> Tensor:
        factor = self.factor.to(kind)
        if self.turned:
            return factor
        return factor[start:stop].view(-1, *[1] * (len(self.place.entry.shape) - 1))


class FileRows:
    """The rows of a weight in a file as variants read them, in float64, a block at a time.

    Args:
        place: of the tensor.
        turned: it lies as (in, out).
    """

    def __init__(self, place: StoredTensor, turned: bool) -> None:
        self.place, self.turned = place, turned

    def squares(self) -> Tensor:
        """‖W_o‖² of each row, (out_features,)."""
        if not self.turned:
            return torch.cat([block.square().sum(dim=1) for _, block in self._blocks()])
        return torch.stack([block.square().sum(dim=0) for _, block in self._blocks()]).sum(dim=0)

    def products(self, A: Tensor) -> Tensor:
        """W Aᵀ, (out_features, rank)."""
        A_RI = A.flatten(1).double()
        if not self.turned:
            return torch.cat([block @ A_RI.t() for _, block in self._blocks()])
        out = self.place.entry.shape[1]
        total = torch.zeros(out, len(A_RI), dtype=torch.float64)
        for start, block in self._blocks():
            total += block.t() @ A_RI[:, start : start + len(block)].t()
        return total

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start, stop in shards.blocks(self.place.entry.shape):
            yield start, shards.read_rows(self.place, start, stop).double().flatten(1)
