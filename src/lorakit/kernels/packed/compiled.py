"""Packed weights as the compiled kernels read them (native/src/packed.h): where their bytes lie, and what they mean.

A packing that the library knows says so by `layout`. `described` makes of it what the kernels take, or None where
plain torch has to do it: no library, another device or number format, a kind or a shape that is not there. `fill`
gives the same bits as `Packing.fill`, which is its oracle; `product` multiplies by the float32 numbers, unrounded.

Legend: T rows, I in_features, O out_features of all the weights together, R rows of W.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lorakit.kernels import native
from lorakit.kernels.workspace import workspace

MOST_ROWS = 4
"""Rows of x that `product` takes."""
GROUP = 32
"""Elements that the kernels unpack at once."""
GGML = ("q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k")
"""The blocks of GGUF files that they know."""
_KINDS = ("nibbles", "nibbles nested", "nibbles offset", "int8", "e4m3", *GGML)
_BY_ROWS = ("int8", "e4m3")
_FORMATS = {  # of scales and of offsets
    "nibbles": torch.float32,
    "nibbles nested": torch.uint8,
    "nibbles offset": torch.bfloat16,
    "int8": torch.float32,
    "e4m3": torch.float32,
}


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """What a packing is made of, for the compiled kernels.

    Attributes:
        kind: one of those drawn in native/src/packed.h, in small letters, a space for "_" in "nibbles nested".
        shape: (out_features, in_features).
        codes: the bytes.
        scales, offsets: one a block, or a row; None where they lie among the bytes.
        block: elements that share a scale, 32 or more, a power of two.
        table: the 16 levels of codes of 4 bits.
        map, nested, shift: how scales of 8 bits are read: map[code] · nested + shift.
        outer: scales that share one of `nested`, a power of two.
    """

    kind: str
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor | None = None
    offsets: Tensor | None = None
    block: int = GROUP
    table: Tensor | None = None
    map: Tensor | None = None
    nested: Tensor | None = None
    shift: Tensor | None = None
    outer: int = 1


@runtime_checkable
class LaidOut(Protocol):
    """A packing that the compiled kernels may read."""

    def layout(self) -> PackedLayout | None:
        """How; None where these very tensors are not as the kernels want them."""


class _PackedStruct(ctypes.Structure):
    """As native/src/packed.h has it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "offsets")),
        *((name, ctypes.c_void_p) for name in ("table", "map", "nested", "shift")),
        *((name, ctypes.c_int64) for name in ("out", "in_", "block", "outer", "kind")),
    )


class Described:
    """A packed weight as the compiled kernels take it.

    Attributes:
        shape: (out_features, in_features).
        address: of its structure, for as long as this object lives.
        few: whether `product` takes it.
        turns: in which of two orders its elements come: weights of one call have the same.
    """

    def __init__(self, layout: PackedLayout) -> None:
        table = _no_levels() if layout.table is None else layout.table
        named = {
            name: getattr(layout, name)
            for name in ("codes", "scales", "offsets", "map", "nested", "shift")
        } | {"table": table}
        # Views, so that the memory stays whatever becomes of the tensors.
        self._kept = {name: each.detach() for name, each in named.items() if each is not None}
        self._struct = _PackedStruct(
            out=layout.shape[0],
            in_=layout.shape[1],
            block=(layout.block // GROUP).bit_length() - 1,
            outer=layout.outer.bit_length() - 1,
            kind=_KINDS.index(layout.kind),
            **{name: each.data_ptr() for name, each in self._kept.items()},
        )
        self.shape = layout.shape
        self.address = ctypes.addressof(self._struct)
        self.turns = layout.kind.startswith("nibbles")
        self.few = layout.kind in _BY_ROWS or layout.shape[1] % GROUP == 0


def described(packing: object) -> Described | None:
    """A packing for the compiled kernels; None where they do not know it, or cannot read these tensors."""
    layout = packing.layout() if isinstance(packing, LaidOut) else None
    return None if layout is None or not _readable(layout) else Described(layout)


def fill(weight: Described, rows_RI: Tensor, start: int) -> bool:
    """Write W[start : start + R] into contiguous rows; False where plain torch has to."""
    kernel = _kernel("packed_fill", "iiii", rows_RI)
    if kernel is None:
        return False
    kernel(weight.address, start, len(rows_RI), rows_RI.data_ptr())
    return True


def product(weights: Sequence[Described], x_TI: Tensor) -> Tensor | None:
    """(x W_0ᵀ, x W_1ᵀ, …) side by side, (T, O); None for more rows, and where plain torch has to.

    Args:
        weights: of one width and one order, see `Described.turns`.
        x_TI: their common input.
    """
    tokens, width = x_TI.shape
    fit = all(each.few and each.shape[1] == width for each in weights)
    if not 0 < tokens <= MOST_ROWS or not fit:
        return None
    kernel = _kernel("packed_product", "iiiiiii", x_TI)
    if kernel is None:
        return None
    x_TI = x_TI.contiguous()
    y_TO = x_TI.new_empty(tokens, sum(each.shape[0] for each in weights))
    listed = (ctypes.c_void_p * len(weights))(*(each.address for each in weights))
    room = workspace.of(tokens * -(-width // GROUP) * GROUP)
    where = ctypes.addressof(listed)
    kernel(where, len(weights), x_TI.data_ptr(), tokens, width, y_TO.data_ptr(), room)
    return y_TO


def _kernel(name: str, arguments: str, like: Tensor) -> Callable[..., None] | None:
    return native.beside(name, arguments, like.dtype, like.device)


def _readable(layout: PackedLayout) -> bool:
    """Whether every tensor lies on the CPU in the format that the kind has."""
    due: list[tuple[Tensor | None, torch.dtype]] = [
        *(
            (each, _FORMATS.get(layout.kind, torch.uint8))
            for each in (layout.scales, layout.offsets)
        ),
        *((each, torch.float32) for each in (layout.table, layout.map)),
        *((each, torch.float32) for each in (layout.nested, layout.shift)),
    ]
    fits = all(each is None or _lies(each, dtype) for each, dtype in due)
    fits = fits and _lies(layout.codes, layout.codes.dtype) and layout.codes.element_size() == 1
    powers = all(size & (size - 1) == 0 for size in (layout.block, layout.outer))
    # The last group of a flattened weight is read whole.
    whole = (
        layout.kind in _BY_ROWS
        or layout.codes.numel() * 2 >= -(-_elements(layout) // GROUP) * GROUP
    )
    return fits and powers and whole and layout.block >= GROUP


def _elements(layout: PackedLayout) -> int:
    return layout.shape[0] * layout.shape[1]


def _lies(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == dtype and tensor.is_contiguous()


@lru_cache(maxsize=1)
def _no_levels() -> Tensor:
    return torch.zeros(16)


@lru_cache(maxsize=8)
def levels(values: tuple[float, ...]) -> Tensor:
    """A table of float32 numbers on the CPU, made once."""
    return torch.tensor(values, dtype=torch.float32)


@runtime_checkable
class Describable(Protocol):
    """A weight that may be packed as the compiled kernels know it."""

    @property
    def description(self) -> Described | None:
        """Its packing as they take it; None where they do not."""


def description_of(weight: object) -> Described | None:
    """Of a frozen weight; None for a tensor, too."""
    return weight.description if isinstance(weight, Describable) else None
