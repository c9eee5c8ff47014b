"""Pairs on experts in one batch of many adapters: rows grouped by expert and adapter.

    y_i = W_e x_i + (x_i D_ae) U_ae        e the expert of row i, a the adapter of its token

A router sends each token to K experts, so T tokens are T·K rows. They are sorted by expert, and those of
one expert by adapter: each W_e is read once a step, and each pair once. The oracle in the tests is a loop
over tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorakit.kernels.adapted_weight import AdaptedWeight
from lorakit.kernels.packed.matrices import MatricesTensor
from lorakit.kernels.slot_plan import SlotRun

_ALIGNED = 16
"""Bytes of which torch's grouped product wants each row to be a multiple."""


@dataclass(frozen=True, eq=False)
class ExpertPairs:
    """The pairs of one adapter on the experts of one parameter: x -> (x D_e) U_e, s in U.

    Attributes:
        down: D, (E, in, r).
        up: U, (E, r, out).
    """

    down: Tensor
    up: Tensor

    def beside(self, weight: Tensor, swapped: bool) -> AdaptedWeight:
        """The weight with these pairs.

        Args:
            weight: (E, out, in), or (E, in, out) where `swapped`; (out, in) of a single matrix.
            swapped: which of them.
        """
        left, right = (self.down, self.up) if swapped else (self.up.mT, self.down.mT)
        if weight.dim() == 2:
            left, right = left[0], right[0]
        return AdaptedWeight.of(weight, left, right, 1.0)


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """The T·K rows of a step by expert, those of one expert by adapter.

    Attributes:
        order: (T·K,), where each row stands among the tokens' choices, token after token.
        experts: (T·K,), its expert.
        stops: one past the last row of each expert.
        groups: expert, first slot of the adapter (None for the base), first row, one past the last.
    """

    order: Tensor
    experts: Tensor
    stops: tuple[int, ...]
    groups: tuple[tuple[int, int | None, int, int], ...]


def adapters_of(runs: Sequence[SlotRun], rows: int, device: torch.device) -> Tensor:
    """(T,): which of the runs each token of a step belongs to; len(runs) for the base's."""
    numbers = [number for number, run in enumerate(runs) for _ in range(run.rows)]
    return torch.tensor(numbers + [len(runs)] * (rows - len(numbers)), device=device)


def rows_by_expert(
    experts_TK: Tensor, adapters_T: Tensor, runs: Sequence[SlotRun], count: int
) -> ExpertRows:
    """Sort the rows of a step.

    Args:
        experts_TK: the experts of each token.
        adapters_T: from `adapters_of`.
        runs: of adapters.
        count: E, how many experts there are.

    Raises:
        ValueError: there are other tokens than were planned, or other experts.
    """
    if len(experts_TK) != len(adapters_T):
        raise ValueError(f"{len(experts_TK)} tokens came, {len(adapters_T)} were planned")
    ways = len(runs) + 1
    keys, order = torch.sort((experts_TK * ways + adapters_T[:, None]).flatten(), stable=True)
    values, counts = torch.unique_consecutive(keys, return_counts=True)
    rows = [0] * count
    groups, start = [], 0
    for key, many in zip(values.tolist(), counts.tolist(), strict=True):
        expert, number = divmod(key, ways)
        if not 0 <= expert < count:
            raise ValueError(f"a token came for expert {expert}, and there are {count}")
        slot = runs[number].slot if number < len(runs) else None
        groups.append((expert, slot, start, start + many))
        rows[expert] += many
        start += many
    stops = tuple(torch.tensor(rows).cumsum(0).tolist())
    return ExpertRows(order, keys // ways, stops, tuple(groups))


def add_pairs(
    x_SI: Tensor, y_SO: Tensor, rows: ExpertRows, held: Mapping[int, ExpertPairs]
) -> None:
    """Add (x D) U of each row's expert and adapter, in place.

    Args:
        x_SI, y_SO: in the order of `rows`.
        rows: of this step.
        held: the pairs by the first slot of their adapter; an adapter without any adds nothing.
    """
    for expert, slot, start, stop in rows.groups:
        pairs = held.get(slot) if slot is not None else None
        if pairs is not None:
            y_SO[start:stop].addmm_(x_SI[start:stop] @ pairs.down[expert], pairs.up[expert])


def grouped_product(x_SI: Tensor, W_EIO: Tensor, stops: Sequence[int]) -> Tensor:
    """x W_e for rows that are sorted by expert, (S, out).

    Args:
        x_SI: the rows.
        W_EIO: a matrix for each expert.
        stops: one past the last row of each.
    """
    if isinstance(W_EIO, MatricesTensor):
        return W_EIO.grouped(x_SI, [b - a for a, b in zip((0, *stops[:-1]), stops, strict=True)])
    if x_SI.is_cuda and _aligned(x_SI) and _aligned(W_EIO):
        return F.grouped_mm(x_SI, W_EIO, offs=torch.tensor(stops, device=x_SI.device).int())
    y_SO = x_SI.new_empty(len(x_SI), W_EIO.shape[-1])
    start = 0
    for expert, stop in enumerate(stops):
        if stop > start:
            torch.mm(x_SI[start:stop], W_EIO[expert], out=y_SO[start:stop])
        start = stop
    return y_SO


def _aligned(tensor: Tensor) -> bool:
    known = tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return known and not any(n * tensor.element_size() % _ALIGNED for n in tensor.shape[-2:])
