"""Many adapters in one batch of tokens: y_t += s_a · B_a (A_a x_t), a the adapter of token t.

Adapters lie in slots of a fixed rank R. One of rank r takes w = ceil(r / R) neighbouring slots, at a
multiple of w, the rest of its rows zero; s is folded into B. So adapters of one width w are rows of a
matrix of slots, and a *segment*, n such rows of which the step's tokens want some or all, is two
batched products, every A and B being read once (arXiv 2310.18547 and 2311.03285 write kernels for
this; here the batched product of any device does it):

    X (n, m, in)       the segment's tokens, m for each adapter, those with fewer padded
    H = A Xᵀ           (n, w·G·R, m), one product for the G linears that share their input
    Y += H B           batched over adapters and over chunks of the outputs (below), summed over w

The outputs of linears that share their input (q, k and v; gate and up) are cut into chunks of one
width, their greatest common divisor, so that they too are one product: q of 576 and k and v of 192
are five chunks of 192, each of which knows whose H it takes. Tokens of the base are in no segment.
How tokens are cut into segments is planned once a step, by `plan_batch`, and used by every layer.

On a CPU with compiled kernels (native.py) it is one call instead, native/src/serve.cpp, which needs no
segments: up to four tokens of an adapter share what is read of it.

An adapter may give each output a factor, y_t = f_a · (W x_t + s_a · B_a A_a x_t) + b. Then f lies in B
beside s, and what is left of it, (f - 1) · W x, is one pass over its own tokens before the pairs are
added (`OutputFactors`); tokens of other adapters are not touched by it.

docs/performance.md has what other ways of cutting cost. The oracle in the tests is a loop over tokens.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.kernels import native
from lorakit.kernels.slot_plan import BatchPlan, Segment


@dataclass(frozen=True, eq=False)
class OutputFactors:
    """What an adapter multiplies the outputs of a group of linears by, side by side.

    Attributes:
        beyond: f - 1, (sum of out_features,): near 1 in 16 bits f itself would be rounded to it.
        offset: -(f - 1) · b, which takes the bias out again; None where there is none.
    """

    beyond: Tensor
    offset: Tensor | None

    def to(self, like: Tensor) -> "OutputFactors":
        """The same in the dtype and on the device of another tensor."""
        offset = None if self.offset is None else self.offset.to(like)
        return OutputFactors(self.beyond.to(like), offset)

    def scale(self, y_TO: Tensor) -> None:
        """Y += (f - 1) · (y - b), in place."""
        y_TO.addcmul_(y_TO, self.beyond)
        if self.offset is not None:
            y_TO.add_(self.offset)


class SlotGroup:
    """The slots of linear layers that share their input: q, k and v, or gate and up, or one alone.

    Attributes:
        A: (slots, linears, R, in_features), zeros where nothing is written.
        B: (slots, chunks, R, chunk): s·Bᵀ of the linears, cut into chunks, one after another.
        owners: (chunks,) int64 on the CPU: the linear of each chunk.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        slots: int,
        rank: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.in_features, self.out_features, self.rank = in_features, tuple(out_features), rank
        self.chunk = math.gcd(*self.out_features)
        chunks = [out // self.chunk for out in self.out_features]
        self._first = [sum(chunks[:i]) for i in range(len(chunks))]
        self._shapes = (len(chunks), rank, in_features), (sum(chunks), rank, self.chunk)
        owners = [i for i, count in enumerate(chunks) for _ in range(count)]
        self._owners = None if len(owners) == 1 else torch.tensor(owners, device=device)
        self._compiled = native.function("slots_add", "i" * 8, dtype, device)
        shape = [in_features, len(chunks), rank, sum(chunks), self.chunk]
        self._shape, self.owners = torch.tensor(shape), torch.tensor(owners)
        self._hold(torch.zeros(slots * self.elements, dtype=dtype, device=device), slots)

    def _hold(self, storage: Tensor, slots: int) -> None:
        """Take zeros for A and B of so many slots."""
        ends = [slots * math.prod(shape) for shape in self._shapes]
        A, B = storage.split(ends)
        self.A, self.B = (x.view(slots, *s) for x, s in zip((A, B), self._shapes, strict=True))
        # Slots with a pair: an adapter that leaves these layers alone costs nothing here.
        self._filled: set[int] = set()
        # By the first slot of an adapter that has them.
        self._factors: dict[int, OutputFactors] = {}

    @property
    def elements(self) -> int:
        """Of A and B in a slot."""
        return sum(math.prod(shape) for shape in self._shapes)

    def holds(self, slots: frozenset[int]) -> bool:
        """Whether one of these slots has a pair."""
        return not self._filled.isdisjoint(slots)

    @property
    def factors(self) -> tuple[OutputFactors, ...]:
        """Of the adapters in its slots that have any."""
        return tuple(self._factors.values())

    def has_factors(self, slots: frozenset[int]) -> bool:
        """Whether an adapter in these slots has factors for the outputs, which `add` alone knows of."""
        return bool(self._factors) and not slots.isdisjoint(self._factors)

    def beside(self, storage: Tensor, slots: int) -> "SlotGroup":
        """Slots of the same layers elsewhere.

        Args:
            storage: `slots` times `elements` zeros.
            slots: how many.
        """
        other = copy(self)
        other._hold(storage, slots)
        return other

    def write(
        self,
        slot: int,
        width: int,
        pairs: Sequence[tuple[Tensor, Tensor, float] | None],
        factors: OutputFactors | None = None,
    ) -> None:
        """Put an adapter's pairs into slots [slot, slot + width), zeros for a linear without one.

        Args:
            slot: the first.
            width: how many; width · R is at least the rank.
            pairs: of each linear A: (rank, in_features), B: (out_features, rank) and s.
            factors: of the outputs, which the Bs have in them.

        Raises:
            ValueError: the shapes are others.
        """
        places = range(slot, slot + width)
        for out, pair in zip(self.out_features, pairs, strict=True):
            if pair is not None:
                A, B, _ = pair
                r = A.shape[0]
                if A.shape != (r, self.in_features) or B.shape != (out, r):
                    raise ValueError(
                        f"A is {tuple(A.shape)} and B {tuple(B.shape)}, for a layer of {out} x "
                        f"{self.in_features}"
                    )
                if r > width * self.rank:
                    raise ValueError(f"{width} slots of rank {self.rank} hold no rank of {r}")
        if not self._filled.isdisjoint(places):
            self.A[slot : slot + width] = 0
            self.B[slot : slot + width] = 0
            self._filled.difference_update(places)
        self._put_factors(places, {} if factors is None else {slot: factors.to(self.B)})
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            A, B, s = pair
            first, count = self._first[i], self.out_features[i] // self.chunk
            B_crc = B.to(self.B.device).view(count, self.chunk, -1).transpose(1, 2)
            for k in range(width):
                rows = slice(k * self.rank, (k + 1) * self.rank)
                held = A[rows].shape[0]
                self.A[slot + k, i, :held] = A[rows]
                # Scaled, turned and narrowed in one pass.
                place = self.B[slot + k, first : first + count, :held]
                torch.mul(B_crc[:, rows], s, out=place)
            self._filled.update(places)

    def take(self, slot: int, other: "SlotGroup") -> None:
        """Copy all slots of another group of the same layers to `slot` and those after it."""
        places = range(slot, slot + other.A.shape[0])
        if other._filled or not self._filled.isdisjoint(places):
            self.A[slot : places.stop] = other.A
            self.B[slot : places.stop] = other.B
        self._filled.difference_update(places)
        self._filled.update(slot + held for held in other._filled)
        self._put_factors(places, {slot + at: each for at, each in other._factors.items()})

    def _put_factors(self, places: range, factors: Mapping[int, OutputFactors]) -> None:
        for place in places:
            self._factors.pop(place, None)
        self._factors.update(factors)

    def add(self, x_TI: Tensor, y_TO: Tensor, plan: BatchPlan) -> None:
        """Add each token's s·B(A x) to the outputs of the linears, in place.

        Args:
            x_TI: the shared input, (T, in_features), in the order of the plan.
            y_TO: the outputs of the linears side by side.
            plan: of this step.

        Raises:
            ValueError: there are other tokens than were planned.
        """
        if x_TI.shape[0] != plan.rows:
            raise ValueError(f"{x_TI.shape[0]} tokens came, {plan.rows} were planned")
        if not self.holds(plan.slots):
            return
        if self.has_factors(plan.slots):
            self._scale(y_TO, plan)
        if self._compiled is not None and y_TO.is_contiguous() and y_TO.dtype == self.A.dtype:
            assert plan.table is not None
            x_TI = x_TI.contiguous()
            tensors = x_TI, y_TO, self.A, self.B, self._shape, self.owners, plan.table
            self._compiled(*(each.data_ptr() for each in tensors), len(plan.runs))
            return
        for each in plan.segments:
            n, m = each.high - each.low, each.tokens_each
            if each.take is None:
                x = x_TI[each.first : each.first + n * m]
            else:
                x = x_TI.index_select(0, each.take)
            o = self._products(x.view(n, m, self.in_features), each)
            if each.take is None:
                y = y_TO[each.first : each.first + n * m].view(n, m, -1, self.chunk)
                y.transpose(1, 2).add_(o)
            else:
                assert each.tokens is not None
                assert each.places is not None
                rows = o.transpose(1, 2).reshape(n * m, -1).index_select(0, each.places)
                y_TO.index_add_(0, each.tokens, rows)

    def _scale(self, y_TO: Tensor, plan: BatchPlan) -> None:
        first = 0
        for run in plan.runs:
            if (factors := self._factors.get(run.slot)) is not None:
                factors.scale(y_TO[first : first + run.rows])
            first += run.rows

    def _products(self, x_nmI: Tensor, each: Segment) -> Tensor:
        """s·B(A x) of a segment, (n, chunks, m, chunk)."""
        n, m, w = each.high - each.low, each.tokens_each, each.width
        linears, chunks = self.A.shape[1], self.B.shape[1]
        A = self.A[each.low * w : each.high * w].view(n, -1, self.in_features)
        B = self.B[each.low * w : each.high * w].view(-1, self.rank, self.chunk)
        # On a CPU a few tokens run faster on the right of bf16 products and on the left of others.
        if x_nmI.dtype == torch.bfloat16:
            h = torch.bmm(A, x_nmI.transpose(1, 2)).view(n * w, linears, self.rank, m)
            h = h.transpose(2, 3)
        else:
            h = torch.bmm(x_nmI, A.transpose(1, 2)).view(n, m, w, linears, self.rank)
            h = h.permute(0, 2, 3, 1, 4).reshape(n * w, linears, m, self.rank)
        if self._owners is not None:
            h = h.index_select(1, self._owners)
        o = torch.bmm(h.reshape(n * w * chunks, m, self.rank), B)
        if w == 1:
            return o.view(n, chunks, m, self.chunk)
        return o.view(n, w, chunks, m, self.chunk).sum(dim=1)
