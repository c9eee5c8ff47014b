"""A packed weight as the products take it: rows are dequantized into a workspace, block by block.

    y = x Wᵀ        of each block of rows of W its own columns of y
    dx += g W       the sum over the blocks

The workspace is one piece of memory for each device, dtype and Python thread. It stays, because
asking the system for it at each call costs more than some of the products; what lies in it is of no
use after the call, and autograd never sees it. All of W is a single block where it is no larger than
the workspace may be.

Where the compiled kernels know a packing (compiled.py), they dequantize, and multiply few rows straight by
it. Some packings have a product of their own for few rows (`MultipliesItself`).
"""

import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lorakit.kernels import products
from lorakit.kernels.packed import compiled
from lorakit.kernels.packed.packing import Packing, rows

LARGEST = 1 << 22
"""Elements of the workspace, unless 64 rows of a weight are more."""
_STEP = 64


@runtime_checkable
class MultipliesItself(Protocol):
    """A packing that knows a faster product than dequantized rows give."""

    def product(self, x_TI: Tensor) -> Tensor | None:
        """X Wᵀ as a new tensor, (T, O); None where dequantizing is better."""


class _Workspaces(threading.local):
    """The largest piece that any call of this Python thread needed, by device and dtype."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def of(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised (rows, columns) of it."""
        size = rows * columns
        piece = self._pieces.get((device, dtype))
        if piece is None or piece.numel() < size:
            self._pieces.pop((device, dtype), None)  # given back before more is asked for
            piece = torch.empty(size, dtype=dtype, device=device)
            self._pieces[device, dtype] = piece
        return piece[:size].view(rows, columns)

    def forget(self) -> None:
        """Give all of it back; the next call asks for it anew."""
        self._pieces.clear()


workspaces = _Workspaces()


class PackedWeight:
    """A `FrozenWeight` (kernels/weights.py) over a packing.

    Attributes:
        packing: what it multiplies by.
        dtype: the number format of the products, which the rows are dequantized to.
    """

    def __init__(self, packing: Packing, dtype: torch.dtype) -> None:
        self.packing = packing
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.packing.shape

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the products."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the packing's tensors lie."""
        return next(iter(self.packing.tensors.values())).device

    def product(self, x_TI: Tensor, onto_TO: Tensor | None = None) -> Tensor:
        """X Wᵀ, or onto + x Wᵀ, as a new tensor (T, O)."""
        own = self._own_product(x_TI)
        if own is not None:
            return own if onto_TO is None else own.add_(onto_TO)
        if onto_TO is not None:
            y_TO = onto_TO.clone(memory_format=torch.contiguous_format)
            self._add_rows(y_TO, x_TI)
            return y_TO
        out, _ = self.shape
        y_TO = x_TI.new_empty(x_TI.shape[0], out)
        for part, block in self._blocks(x_TI.dtype):
            if part == slice(0, out):
                return products.product(x_TI, block.t())
            torch.mm(x_TI, block.t(), out=y_TO[:, part])
        return y_TO

    def add_product(self, y_TO: Tensor, x_TI: Tensor) -> None:
        """Y += x Wᵀ, in place."""
        own = self._own_product(x_TI)
        if own is not None:
            y_TO.add_(own)
        else:
            self._add_rows(y_TO, x_TI)

    def input_gradient(self, grad_TO: Tensor) -> Tensor:
        """G W, as a new tensor (T, I)."""
        grad_TI: Tensor | None = None
        for part, block in self._blocks(grad_TO.dtype):
            if grad_TI is None:
                grad_TI = products.product(grad_TO[:, part], block)
            else:
                products.add_product(grad_TI, grad_TO[:, part], block)
        assert grad_TI is not None
        return grad_TI

    def add_input_gradient(self, grad_TI: Tensor, grad_TO: Tensor) -> None:
        """The gradient of x += g W, in place."""
        for part, block in self._blocks(grad_TO.dtype):
            products.add_product(grad_TI, grad_TO[:, part], block)

    def rows(self, start: int, stop: int) -> Tensor:
        """W[start:stop] in float32 at least, (stop - start, I)."""
        return rows(self.packing, start, stop, torch.promote_types(self._dtype, torch.float32))

    @cached_property
    def description(self) -> compiled.Described | None:
        """The packing as the compiled kernels take it, where they do."""
        return compiled.described(self.packing)

    def _own_product(self, x_TI: Tensor) -> Tensor | None:
        if x_TI.shape[0] <= compiled.MOST_ROWS and self.description is not None:
            y_TO = compiled.product([self.description], x_TI)
            if y_TO is not None:
                return y_TO
        packing = self.packing
        return packing.product(x_TI) if isinstance(packing, MultipliesItself) else None

    def _add_rows(self, y_TO: Tensor, x_TI: Tensor) -> None:
        for part, block in self._blocks(x_TI.dtype):
            products.add_product(y_TO[:, part], x_TI, block.t())

    def _blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows, each of which is gone when the next one is asked for."""
        out, width = self.shape
        many = max(_STEP, LARGEST // max(width, 1) // _STEP * _STEP)
        for start in range(0, out, many):
            stop = min(start + many, out)
            block = workspaces.of(stop - start, width, dtype, self.device)
            known = self.description
            if known is None or not compiled.fill(known, block, start):
                self.packing.fill(block, start)
            yield slice(start, stop), block
