"""Where the sequences of a row of tokens lie, and in which groups attention takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# What starting one more group costs, in scores computed: on a CPU measured at about 0.4 ms,
# forward and backward, which is some four thousand scores; an accelerator is filled by far more.
_GROUP_COST_CPU = 4096
_GROUP_COST_ACCELERATOR = 1 << 20


@dataclass(frozen=True, eq=False)
class Group:
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
class Layout:
    """Where the sequences of a row of T tokens lie, and how attention groups them."""

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]


def layout(lengths_S: Sequence[int], device: torch.device) -> Layout:
    """Group the sequences so that padding and the number of matmuls together cost least.

    Raises:
        ValueError: a length below 1.
    """
    lengths = tuple(int(n) for n in lengths_S)
    if not lengths or min(lengths) < 1:
        raise ValueError(f"every sequence needs at least one token; lengths are {lengths}")
    return _layout(lengths, device)


@lru_cache(maxsize=64)
def _layout(lengths: tuple[int, ...], device: torch.device) -> Layout:
    starts = [0]
    for n in lengths:
        starts.append(starts[-1] + n)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cost = _GROUP_COST_CPU if device.type == "cpu" else _GROUP_COST_ACCELERATOR
    groups = []
    for first, last in _partition([lengths[i] for i in order], cost):
        members = order[first:last]
        longest = lengths[members[0]]
        start = torch.tensor([starts[i] for i in members])[:, None]
        size = torch.tensor([lengths[i] for i in members])[:, None]
        place = torch.arange(longest)[None, :]
        rows = (start + torch.minimum(place, size - 1)).flatten()
        real = (place < size).flatten().nonzero()[:, 0]
        groups.append(
            Group(len(members), longest, rows.to(device), real.to(device), rows[real].to(device))
        )
    return Layout(lengths, tuple(groups))


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
