"""One tensor of a file with its update, a block of rows at a time: what is written, and its bounds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.adapters.pairs import Pair
from lorakit.files import shards
from lorakit.files.header import StoredTensor
from lorakit.lora import Target, equations
from lorakit.lora.whole import Whole


@dataclass(frozen=True, eq=False)
class TensorMerge:
    """One tensor to merge: where W lies, and the factors of its update by rows.

    The update's rows are s · left[rows] · right in the layout of W.
    """

    place: StoredTensor
    name: str
    left: Tensor
    right: Tensor
    scale: float

    def update(self, start: int, stop: int, kind: torch.dtype) -> Tensor:
        """Rows of s·B·A."""
        return equations.delta(self.right.to(kind), self.left[start:stop].to(kind), self.scale)

    def merged(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows of W + s·B·A, added in float32 (float64 for wider factors) and rounded once."""
        W = shards.read_rows(self.place, start, stop)
        kind = torch.promote_types(torch.promote_types(W.dtype, self.left.dtype), torch.float32)
        left, right = self.left[start:stop].to(kind), self.right.to(kind)
        return equations.merge(W.to(kind), right, left, self.scale).to(dtype)

    def reach(self, start: int, stop: int) -> Tensor:
        """|s| ‖b‖ ‖a‖ of each entry of these rows, float64: no inner product of its factors is larger."""
        right_norms = self.right.double().norm(dim=0)
        left_norms = self.left[start:stop].double().flatten(1).norm(dim=1)
        return left_norms.view(-1, *[1] * right_norms.dim()) * right_norms * abs(self.scale)


class ExpertsMerge(TensorMerge):
    """The matrices of all experts in one tensor: left (E, m, r), right (E, r, n), a row an expert."""

    def update(self, start: int, stop: int, kind: torch.dtype) -> Tensor:
        """s·L R of these experts."""
        left, right = self.left[start:stop].to(kind), self.right[start:stop].to(kind)
        return self.scale * (left @ right)

    def merged(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """W + s·L R of these experts, as in `TensorMerge`."""
        W = shards.read_rows(self.place, start, stop)
        kind = torch.promote_types(torch.promote_types(W.dtype, self.left.dtype), torch.float32)
        return (W.to(kind) + self.update(start, stop, kind)).to(dtype)

    def reach(self, start: int, stop: int) -> Tensor:
        """As in `TensorMerge`."""
        left_norms = self.left[start:stop].double().norm(dim=2)[:, :, None]
        right_norms = self.right[start:stop].double().norm(dim=1)[:, None, :]
        return left_norms * right_norms * abs(self.scale)


@dataclass(frozen=True, eq=False)
class ValueMerge(TensorMerge):
    """A tensor of which an adapter has a value of its own, all of it or some rows; the value is `left`."""

    what: Whole | None = None

    def merged(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """These rows of the tensor as the adapter has it."""
        W = shards.read_rows(self.place, start, stop)
        return self._with_value(W, start, stop, torch.promote_types(W.dtype, torch.float32)).to(
            dtype
        )

    def update(self, start: int, stop: int, kind: torch.dtype) -> Tensor:
        """What it differs by from the base."""
        W = shards.read_rows(self.place, start, stop).to(kind)
        return self._with_value(W, start, stop, kind) - W

    def reach(self, start: int, stop: int) -> Tensor:
        """Nothing is summed but a bias and its like."""
        return self.update(start, stop, torch.float64).abs()

    def _with_value(self, W: Tensor, start: int, stop: int, kind: torch.dtype) -> Tensor:
        assert self.what is not None
        W = W.to(kind, copy=True)
        if self.what.kind == "added":
            return W + self.scale * self.left[start:stop].to(kind)
        if not self.what.rows:
            return self.left[start:stop].to(kind)
        inside = [(i, row) for i, row in enumerate(self.what.rows) if start <= row < stop]
        for i, row in inside:
            W[row - start] = self.left[i].to(kind)
        return W


def factors(target: Target, pair: Pair) -> tuple[Tensor, Tensor]:
    """Factors of the update in the layout of the weight: an embedding and a Conv1D transpose it."""
    if turned(target):
        return pair.A.T.contiguous(), pair.B.T.contiguous()
    return pair.B, pair.A


def turned(target: Target) -> bool:
    """Whether the weight lies as (in, out)."""
    return target.geometry.transposed or target.geometry.kind == "embedding"
