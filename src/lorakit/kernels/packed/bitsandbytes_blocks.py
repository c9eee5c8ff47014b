"""Weights in bitsandbytes' 4 bits: a table of 16 levels, and a scale for each block of the flattened W.

    w = table[q] · absmax_b

absmax itself may be kept in 8 bits the same way, plus an offset ("nested", double quantization). The
table is in the file: NF4's (Dettmers et al., arXiv 2305.14314) or FP4's.

Legend: O out_features, I in_features, R rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lorakit.kernels.packed.compiled import PackedLayout
from lorakit.kernels.packed.lookup import look_up


@dataclass(frozen=True, eq=False)
class Nested:
    """How absmax is kept in 8 bits: absmax_b = table[code_b] · scale_c + offset, c a block of blocks.

    Attributes:
        table: (256,).
        scales: one for each block of codes.
        size: codes in such a block.
        offset: added to all.
    """

    table: Tensor
    scales: Tensor
    size: int
    offset: float


@dataclass(frozen=True, eq=False)
class FourBitBlocks:
    """W as bitsandbytes' files keep it.

    Attributes:
        packed: (ceil(O·I / 2),) of uint8, the first number in the high half.
        absmax: one for each block: float32, or codes in uint8 where they are nested.
        table: (16,), the levels.
        size: numbers in a block.
        kind: nf4 or fp4.
        shape: (O, I).
        nested: how absmax is kept, None where it is kept plain.
    """

    packed: Tensor
    absmax: Tensor
    table: Tensor
    size: int
    kind: str
    shape: tuple[int, int]
    nested: Nested | None = None

    def checked(self) -> Self:
        """Itself, once its tensors are seen to fit one another.

        Raises:
            ValueError: they do not.
        """
        count = self.shape[0] * self.shape[1]
        whole = self.packed.numel() == -(-count // 2) and self.table.numel() == 16
        whole = whole and self.absmax.numel() == -(-count // self.size) and self.size % 2 == 0
        if self.nested is not None:
            outer = -(-self.absmax.numel() // self.nested.size)
            whole = whole and self.nested.scales.numel() == outer
        if not whole:
            raise ValueError("weight, absmax and quant_map do not fit one another")
        return self

    @property
    def name(self) -> str:
        """By kind."""
        return self.kind

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        kept = {"packed": self.packed, "absmax": self.absmax, "table": self.table}
        if self.nested is None:
            return kept
        return kept | {"nested_table": self.nested.table, "nested_scales": self.nested.scales}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        nested = self.nested
        if nested is not None:
            two = tensors["nested_table"], tensors["nested_scales"]
            nested = Nested(*two, nested.size, nested.offset)
        three = tensors["packed"], tensors["absmax"], tensors["table"]
        return type(self)(*three, self.size, self.kind, self.shape, nested)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        width = self.shape[1]
        first, last = start * width // self.size, -(-stop * width // self.size)
        begin = first * self.size
        codes = self.packed.flatten()[begin // 2 : last * self.size // 2]
        values = torch.empty(2 * len(codes), device=codes.device)
        look_up(codes, self._pairs(), values)
        short = (last - first) * self.size - values.numel()
        if short:  # the last block of all
            values = torch.nn.functional.pad(values, (0, short))
        values = values.view(-1, self.size).mul_(self._scales(first, last)[:, None]).view(-1)
        rows_RI.copy_(values[start * width - begin : stop * width - begin].view(rows_RI.shape))

    def layout(self) -> PackedLayout:
        """As the compiled kernels read it."""
        nested = self.nested
        parts = (self.shape, self.packed, self.absmax, None, self.size, self.table)
        if nested is None:
            return PackedLayout("nibbles", *parts)
        shift = torch.tensor([nested.offset], dtype=torch.float32)
        return PackedLayout(
            "nibbles nested", *parts, nested.table, nested.scales, shift, nested.size
        )

    def _pairs(self) -> Tensor:
        """Both numbers of each byte, as one complex number: (256,)."""
        codes = torch.arange(256, device=self.table.device)
        table = self.table.flatten().float()
        pairs = torch.stack([table[codes >> 4], table[codes & 15]], 1)
        return pairs.view(torch.complex64)[:, 0]

    def _scales(self, first: int, last: int) -> Tensor:
        """The scales of some blocks, in float32."""
        part = self.absmax.flatten()[first:last]
        if self.nested is None:
            return part.float()
        which = torch.arange(first, last, device=part.device) // self.nested.size
        codes = self.nested.table.float()[part.int()]
        return codes.mul_(self.nested.scales.float()[which]).add_(self.nested.offset)
