"""Weights whose codes lie side by side in 32-bit words: GPTQ, AWQ, compressed-tensors' pack-quantized.

    w = scale · (q - zero)

with one scale and one zero for each group of inputs of an output. The formats differ in which way the words
run, in the order within a word, and in what they store for a zero:

    GPTQ            words along the inputs, lowest bits first; the input's group may be listed (act-order).
                    Zeros lie in words along the outputs, in the first layout each one less.
    AWQ             words along the outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7; zeros likewise.
    pack-quantized  words along the inputs of a row; q in -8..7 is stored as q + 8; zeros lie in words
                    along the outputs, and are left out where they are all 0.

Sources of the layouts: gptqmodel 7.7 (nn_modules/qlinear), autoawq 0.2.9 (modules/linear/gemm.py),
compressed-tensors 0.20 (compressors/pack_quantized). All is computed in float32.

Legend: O out_features, I in_features, G groups, R rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the numbers 0..7 lie in a word


def _fields(words: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """Words -> their fields in a new last dimension, the lowest bits first, or in an order."""
    fields = order or range(32 // bits)
    shifts = torch.tensor([bits * f for f in fields], dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts) & ((1 << bits) - 1)


def _columns(
    words: Tensor, bits: int, start: int, stop: int, order: Sequence[int] | None = None
) -> Tensor:
    """Numbers start..stop of each row of words that lie along the columns: (rows, stop - start)."""
    n = 32 // bits
    first = start // n
    part = words[:, first : -(-stop // n)]
    flat = _fields(part, bits, order).flatten(1)
    return flat[:, start - first * n : stop - first * n]


def _grouped(q_RI: Tensor, scales_RG: Tensor, zeros_RG: Tensor, groups_I: Tensor | None) -> Tensor:
    """scale · (q - zero): (R, I) of float32, with the groups one after the other or as listed."""
    q_RI = q_RI.float()
    if groups_I is not None:
        return (q_RI - zeros_RG[:, groups_I]).mul_(scales_RG[:, groups_I])
    R, G = scales_RG.shape
    q_RGN = q_RI.reshape(R, G, -1)
    return (q_RGN - zeros_RG[..., None]).mul_(scales_RG[..., None]).view(R, -1)


def _listed(groups_I: Tensor | None, inputs: int, count: int) -> Tensor | None:
    """The group of each input where groups do not simply follow one another, else None."""
    if groups_I is None:
        if inputs % count:
            raise ValueError(f"{inputs} inputs do not fall into {count} groups")
        return None
    if len(groups_I) != inputs or int(groups_I.min()) < 0 or int(groups_I.max()) >= count:
        raise ValueError(f"g_idx does not name a group of {count} for each of {inputs} inputs")
    plain = torch.arange(inputs, device=groups_I.device) // -(-inputs // count)
    follow = inputs % count == 0 and torch.equal(groups_I.long(), plain)
    return None if follow else groups_I.int()


@dataclass(frozen=True, eq=False)
class GptqWords:
    """W as GPTQ's files keep it.

    Attributes:
        qweight: (I·bits/32, O) of int32.
        qzeros: (G, O·bits/32) of int32.
        scales: (G, O).
        groups: (I,), the group of each input; None where they follow one another.
        bits: 2, 4 or 8.
        less_one: zeros are stored less one (checkpoint_format "gptq").
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    groups: Tensor | None
    bits: int
    less_one: bool

    def checked(self) -> Self:
        """Itself, once its tensors are seen to fit one another.

        Raises:
            ValueError: they do not.
        """
        count, out = self.scales.shape
        groups = _listed(self.groups, self.shape[1], count)
        zeros = count, -(-out * self.bits // 32)
        if self.qweight.shape[1] != out or tuple(self.qzeros.shape) != zeros:
            raise ValueError("qweight, qzeros and scales do not fit one another")
        return replace(self, groups=groups)

    @property
    def name(self) -> str:
        """By method and bits."""
        return f"gptq{self.bits}"

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.qweight.shape[1], self.qweight.shape[0] * 32 // self.bits

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        kept = {"qweight": self.qweight, "qzeros": self.qzeros, "scales": self.scales}
        return kept if self.groups is None else {**kept, "groups": self.groups}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        three = tensors["qweight"], tensors["qzeros"], tensors["scales"]
        return type(self)(*three, tensors.get("groups"), self.bits, self.less_one)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        words_RW = self.qweight[:, start:stop].t().contiguous()
        zeros = self.qzeros
        if self.less_one:
            # Added to whole words, as gptqmodel does: a zero of 0 was stored with a borrow.
            zeros = zeros + sum(1 << at for at in range(0, 31, self.bits))
        zeros_RG = _columns(zeros, self.bits, start, stop).t().float()
        scales_RG = self.scales[:, start:stop].t().float()
        q_RI = _fields(words_RW, self.bits).flatten(1)
        rows_RI.copy_(_grouped(q_RI, scales_RG, zeros_RG, self.groups))


@dataclass(frozen=True, eq=False)
class AwqWords:
    """W as AWQ's files keep it ("gemm"): 4 bits.

    Attributes:
        qweight: (I, O/8) of int32.
        qzeros: (G, O/8) of int32.
        scales: (G, O).
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def checked(self) -> Self:
        """Itself, once its tensors are seen to fit one another.

        Raises:
            ValueError: they do not.
        """
        (count, out), (inputs, wide) = self.scales.shape, self.qweight.shape
        if wide * 8 != out or tuple(self.qzeros.shape) != (count, wide) or inputs % count:
            raise ValueError("qweight, qzeros and scales do not fit one another")
        return self

    @property
    def name(self) -> str:
        """By method and bits."""
        return "awq4"

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.scales.shape[1], self.qweight.shape[0]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return {"qweight": self.qweight, "qzeros": self.qzeros, "scales": self.scales}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        return type(self)(**tensors)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        q_RI = _columns(self.qweight, 4, start, stop, _AWQ_ORDER).t().contiguous()
        zeros_RG = _columns(self.qzeros, 4, start, stop, _AWQ_ORDER).t().float()
        rows_RI.copy_(_grouped(q_RI, self.scales[:, start:stop].t().float(), zeros_RG, None))


@dataclass(frozen=True, eq=False)
class RowWords:
    """W as compressed-tensors' "pack-quantized" keeps it.

    Attributes:
        packed: (O, ceil(I·bits/32)) of int32.
        scales: (O, G).
        zeros: (ceil(O·bits/32), G) of int32; None where every zero is 0.
        bits: 2, 4 or 8.
        in_features: I; the last word of a row may be filled up.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    in_features: int

    def checked(self) -> Self:
        """Itself, once its tensors are seen to fit one another.

        Raises:
            ValueError: they do not.
        """
        out, count = self.scales.shape
        due = out, -(-self.in_features * self.bits // 32)
        zeros = -(-out * self.bits // 32), count
        if self.bits not in (2, 4, 8):
            raise ValueError(f"{self.bits} bits are not read here; 2, 4 and 8 are")
        fits = tuple(self.packed.shape) == due and self.in_features % count == 0
        if not fits or (self.zeros is not None and tuple(self.zeros.shape) != zeros):
            raise ValueError("weight_packed, weight_scale and weight_zero_point do not fit")
        return self

    @property
    def name(self) -> str:
        """By bits."""
        return f"int{self.bits}"

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.packed.shape[0], self.in_features

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        kept = {"packed": self.packed, "scales": self.scales}
        return kept if self.zeros is None else {**kept, "zeros": self.zeros}

    def over(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same over moved tensors."""
        three = tensors["packed"], tensors["scales"], tensors.get("zeros")
        return type(self)(*three, self.bits, self.in_features)

    def fill(self, rows_RI: Tensor, start: int) -> None:
        """Write W[start : start + R] into `rows`."""
        stop = start + len(rows_RI)
        middle = 1 << (self.bits - 1)
        q_RI = _fields(self.packed[start:stop], self.bits).flatten(1)[:, : self.in_features]
        scales_RG = self.scales[start:stop].float()
        if self.zeros is None:
            zeros_RG = torch.full_like(scales_RG, middle)
        else:  # stored with the same middle, which cancels
            zeros_RG = _columns(self.zeros.t(), self.bits, start, stop).t().float()
        rows_RI.copy_(_grouped(q_RI, scales_RG, zeros_RG, None))
