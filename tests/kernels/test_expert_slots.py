"""Products by expert and adapter, against a loop over tokens."""

import pytest
import torch
from torch import Tensor

from lorakit.kernels.expert_slots import (
    ExpertPairs,
    adapters_of,
    add_pairs,
    grouped_product,
    rows_by_expert,
)
from lorakit.kernels.slot_plan import SlotRun

E, IN, OUT, T, K = 5, 6, 7, 11, 2


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_rows_of_many_adapters_equal_a_loop_over_tokens() -> None:
    # Slot 2 has no pairs here; three of the tokens are the base's.
    runs = (SlotRun(0, 1, 4), SlotRun(2, 1, 1), SlotRun(4, 2, 3))
    held = {
        slot: ExpertPairs(numbers(E, IN, r, seed=slot + 1), numbers(E, r, OUT, seed=slot + 9))
        for slot, r in ((0, 3), (4, 1))
    }
    W, x = numbers(E, IN, OUT), numbers(T, IN, seed=2)
    experts = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
    rows = rows_by_expert(experts, adapters_of(runs, T, x.device), runs, E)
    x_SI = x[rows.order // K]
    y_SO = grouped_product(x_SI, W, rows.stops)
    add_pairs(x_SI, y_SO, rows, held)
    y = torch.empty_like(y_SO)
    y[rows.order] = y_SO
    slots = [0] * 4 + [2] + [4] * 3 + [None] * 3
    for t in range(T):
        for k in range(K):
            e, pairs = experts[t, k], held.get(slots[t])
            full = W[e] if pairs is None else W[e] + pairs.down[e] @ pairs.up[e]
            torch.testing.assert_close(y[t * K + k], x[t] @ full)
            assert rows.experts[(rows.order == t * K + k).nonzero()] == e
    # Each pair and each matrix is used once.
    assert len({group[:2] for group in rows.groups}) == len(rows.groups)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
def test_the_weight_beside_an_adapter_is_their_sum(turned: bool, axes: int) -> None:
    count = E if axes == 3 else 1
    pairs = ExpertPairs(numbers(count, IN, 2), numbers(count, 2, OUT, seed=1))
    delta = pairs.down @ pairs.up
    if not turned or axes == 2:
        delta, turned = delta.mT, False
    delta = delta if axes == 3 else delta[0]
    W = numbers(*delta.shape, seed=3)
    torch.testing.assert_close(pairs.beside(W, turned).formed(), W + delta)


def test_a_step_that_is_not_as_planned_is_refused() -> None:
    runs = (SlotRun(0, 1, 2),)
    adapters = adapters_of(runs, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="4 tokens came, 3 were planned"):
        rows_by_expert(torch.zeros(4, 1, dtype=torch.long), adapters, runs, E)
    with pytest.raises(ValueError, match="for expert 5, and there are 5"):
        rows_by_expert(torch.full((3, 1), E), adapters, runs, E)
