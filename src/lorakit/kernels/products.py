"""Matrix products with many rows, in parts where the processor's library wants them so.

oneDNN's 16-bit matmuls leave all but one thread idle for some shapes: there two products of at most 512
rows are faster than one (docs/performance.md has figures). Rows do not depend on each other, so that parts
change nothing but time.
"""

import torch
from torch import Tensor

_ROWS = 512
_FEW_COLUMNS = 1024


def product(x_TI: Tensor, w_IO: Tensor, onto_TO: Tensor | None = None) -> Tensor:
    """x w, or onto + x w, as a new tensor: (T, O)."""
    parts = _parts(x_TI, w_IO)
    if len(parts) == 1:
        return x_TI @ w_IO if onto_TO is None else torch.addmm(onto_TO, x_TI, w_IO)
    y_TO = x_TI.new_empty(x_TI.shape[0], w_IO.shape[1])
    for part in parts:
        if onto_TO is None:
            torch.mm(x_TI[part], w_IO, out=y_TO[part])
        else:
            torch.addmm(onto_TO[part], x_TI[part], w_IO, out=y_TO[part])
    return y_TO


def add_product(y_TO: Tensor, x_TI: Tensor, w_IO: Tensor) -> None:
    """y += x w, in place."""
    for part in _parts(x_TI, w_IO):
        y_TO[part].addmm_(x_TI[part], w_IO)


def _parts(x_TI: Tensor, w_IO: Tensor) -> list[slice]:
    rows, (inner, columns) = x_TI.shape[0], w_IO.shape
    slow = (
        x_TI.device.type == "cpu"
        and x_TI.dtype == torch.bfloat16
        and _ROWS < rows < 3 * _ROWS
        and columns < _FEW_COLUMNS
        and inner >= 2 * columns
    )
    return [slice(i, i + _ROWS) for i in range(0, rows, _ROWS)] if slow else [slice(None)]
