"""Where the sequences of a row of tokens lie, and in which groups attention takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

# What starting one more group costs, in scores computed: on a CPU measured at about 0.4 ms,
# forward and backward, which is some four thousand scores; an accelerator is filled by far more.
_GROUP_COST_CPU = 4096
_GROUP_COST_ACCELERATOR = 1 << 20
# A processor's 16-bit matmuls are compiled for each new shape: 1 to 5 ms with AMX, where one of
# them runs for less than one. So lengths are rounded up to few values, by 3 % on average.
_LEAST_STEP = 32


def rounded(size: int) -> int:
    """The next larger of few sizes: sixteen for each doubling, multiples of 32 at the least."""
    step = max(_LEAST_STEP, 1 << max(0, size.bit_length() - 5))
    return -(-size // step) * step


def compiles_shapes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a matmul in this dtype costs a compilation wherever its shape is new."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class PaddedGroup:
    """Sequences of similar length, padded to `length` tokens.

    `rows` (n·M,): the token that stands at each padded place (padding repeats the sequence's last).
    `real` (R,): the padded places that hold real tokens; `tokens` (R,): which tokens those are.
    """

    count: int
    length: int
    rows: Tensor
    real: Tensor
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class HeadRows:
    """How (T, H, D) and the padded groups laid one after another map onto each other.

    Both are taken as rows of D elements: row t·H + h of the first; in the second a group is
    (n, H, M) rows. One `index_select` so moves all heads of all groups, transposition included.

    `take` (P·H,): the row of the first for each place of the second; `back` (T·H,): the inverse;
    `padding`: the places that hold no real token; `left_out`: rows of tokens in none of the
    groups, whose entry in `back` means nothing.
    """

    take: Tensor
    back: Tensor
    padding: Tensor
    left_out: Tensor


@lru_cache(maxsize=16)
def head_rows(groups: tuple[PaddedGroup, ...], tokens: int, heads: int) -> HeadRows:
    """The map for these groups of a row of so many tokens, with so many heads."""
    device = groups[0].rows.device
    head = torch.arange(heads, device=device)
    back = torch.full((tokens, heads), -1, device=device)
    take, padding, offset = [], [], 0
    for group in groups:
        n, length = group.count, group.length
        place = torch.arange(n * heads * length, device=device).view(n, heads, length) + offset
        take.append((group.rows.view(n, 1, length) * heads + head[:, None]).flatten())
        by_token = place.transpose(1, 2).flatten(0, 1)
        back[group.tokens] = by_token[group.real]
        unreal = torch.ones(n * length, dtype=torch.bool, device=device)
        unreal[group.real] = False
        padding.append(by_token[unreal].flatten())
        offset += n * heads * length
    left_out = (back.flatten() < 0).nonzero()[:, 0]
    return HeadRows(torch.cat(take), back.clamp_min(0).flatten(), torch.cat(padding), left_out)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the sequences of a row of T tokens lie, and how attention takes them.

    Attributes:
        lengths: tokens of each sequence.
        device: where the indices are.
        few_sizes: groups are padded to few different lengths.
    """

    lengths: tuple[int, ...]
    device: torch.device
    few_sizes: bool = False

    @cached_property
    def groups(self) -> tuple[PaddedGroup, ...]:
        """The sequences in padded groups, for attention that takes rectangles."""
        return _grouped(self.lengths, self.device, self.few_sizes)

    def bounds(self, tokens: int) -> "Bounds":
        """The sequences by their bounds, for attention that takes them end to end.

        Tokens of no sequence, at the end of a row of so many tokens, are one more sequence: what such an
        attention writes nowhere is whatever was in memory there.
        """
        rest = tokens - sum(self.lengths)
        lengths = self.lengths + ((rest,) if rest else ())
        known: dict[int, Bounds] = self.__dict__.setdefault("_bounds", {})
        if tokens not in known:
            starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
            known[tokens] = Bounds(starts.to(self.device), max(lengths))
        return known[tokens]


@dataclass(frozen=True, eq=False)
class OpenLayout(Layout):
    """Sequences whose bounds are read when a kernel runs: what a step that is recorded once is made of.

    Attributes:
        lengths: of one sequence, as long as the longest may be.
        starts: as of `Bounds`; what it holds may change between two runs.
    """

    starts: Tensor | None = None

    @cached_property
    def groups(self) -> tuple[PaddedGroup, ...]:
        """There are none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("attention takes padded groups here, whose shapes change with the rows")

    def bounds(self, tokens: int) -> "Bounds":
        """The bounds as they are now; every token is in a sequence."""
        assert self.starts is not None
        return Bounds(self.starts, self.lengths[0])


@dataclass(frozen=True, eq=False)
class Bounds:
    """Where packed sequences begin and end.

    Attributes:
        starts: (S + 1,) int32: the first token of each sequence, and one past the last token.
        longest: tokens of the longest sequence, or more.
    """

    starts: Tensor
    longest: int


def layout(lengths_S: Sequence[int], device: torch.device, *, few_sizes: bool = False) -> Layout:
    """PaddedGroup the sequences so that padding and the number of matmuls together cost least.

    Args:
        lengths_S: tokens of each sequence.
        device: where the indices will be.
        few_sizes: pad groups to few different lengths, for `compiles_shapes`.

    Raises:
        ValueError: a length below 1.
    """
    lengths = tuple(int(n) for n in lengths_S)
    if not lengths or min(lengths) < 1:
        raise ValueError(f"every sequence needs at least one token; lengths are {lengths}")
    return _layout(lengths, device, few_sizes)


@lru_cache(maxsize=16)
def _layout(lengths: tuple[int, ...], device: torch.device, few_sizes: bool) -> Layout:
    return Layout(lengths, device, few_sizes)


def _grouped(
    lengths: tuple[int, ...], device: torch.device, few_sizes: bool
) -> tuple[PaddedGroup, ...]:
    starts = [0]
    for n in lengths:
        starts.append(starts[-1] + n)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cost = _GROUP_COST_CPU if device.type == "cpu" else _GROUP_COST_ACCELERATOR
    groups = []
    padded = [_group_length(lengths[i]) if few_sizes else lengths[i] for i in order]
    for first, last in _partition(padded, cost):
        members = order[first:last]
        longest = padded[first]
        start = torch.tensor([starts[i] for i in members])[:, None]
        size = torch.tensor([lengths[i] for i in members])[:, None]
        place = torch.arange(longest)[None, :]
        rows = (start + torch.minimum(place, size - 1)).flatten()
        real = (place < size).flatten().nonzero()[:, 0]
        groups.append(
            PaddedGroup(
                len(members), longest, rows.to(device), real.to(device), rows[real].to(device)
            )
        )
    return tuple(groups)


def _group_length(length: int) -> int:
    """Few lengths, each of whole blocks of attention (flash.py)."""
    step = 16 if length <= 128 else 64 if length <= 512 else 128
    return -(-length // step) * step


def _partition(lengths: Sequence[int], group_cost: int) -> list[tuple[int, int]]:
    """Split descending lengths into runs of least Σ (group_cost + n·M²).

    n·M² scores are computed for n sequences padded to M tokens; a run's fixed cost is that of
    about `group_cost` scores.
    """
    # best[i]: the cost of the first i lengths, and where their last run starts
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        best.append(
            min(
                (best[s][0] + group_cost + (end - s) * lengths[s] ** 2, s)
                for s in range(max(0, end - 256), end)
            )
        )
    runs, end = [], len(lengths)
    while end:
        runs.append((best[end][1], end))
        end = best[end][1]
    return runs[::-1]
