"""Adapters that multiply their outputs, beside others in one batch, against a loop over tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.kernels.slot_plan import Costs, SlotRun, plan_batch
from lorakit.kernels.slots import OutputFactors, SlotGroup

CPU = torch.device("cpu")
IN, OUTS, R = 12, (10, 6), 4
COST = Costs(5, 1, 0.1)


def made(seed, rank, factors):
    """A, B and s of each layer, and f of all outputs or None."""
    g = torch.Generator().manual_seed(seed)
    pairs = [
        (
            torch.randn(rank, IN, generator=g, dtype=torch.float64),
            torch.randn(out, rank, generator=g, dtype=torch.float64),
            0.5 + seed % 3,
        )
        for out in OUTS
    ]
    f = 0.5 + torch.rand(sum(OUTS), generator=g, dtype=torch.float64)
    return pairs, f if factors else None


def put(group, slot, rank, pairs, f, bias):
    width = math.ceil(rank / R)
    if f is None:
        group.write(slot, width, pairs)
        return
    parts = f.split(OUTS)
    written = [(A, B * p[:, None], s) for (A, B, s), p in zip(pairs, parts, strict=True)]
    offset = None if bias is None else -(f - 1) * bias
    group.write(slot, width, written, OutputFactors(f - 1, offset))


def alone(x_I, product_O, bias, pairs, f):
    """F · (W x + s·B (A x)) + b of one token."""
    low = torch.cat([s * (B @ (A @ x_I)) for A, B, s in pairs])
    y = product_O + low
    y = y if f is None else f * y
    return y if bias is None else y + bias


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(st.sampled_from([1, 4, 5, 8]), st.integers(0, 4), st.booleans()), max_size=5
    ),
    base=st.integers(0, 3),
    biased=st.booleans(),
)
def test_every_token_gets_its_own_factor_and_no_other(chosen, base, biased):
    group = SlotGroup(IN, OUTS, 40, R, dtype=torch.float64, device=CPU)
    bias = torch.linspace(-1, 1, sum(OUTS), dtype=torch.float64) if biased else None
    runs, owners, slot = [], [], 0
    for seed, (rank, tokens, factors) in enumerate(chosen):
        pairs, f = made(seed, rank, factors)
        width = math.ceil(rank / R)
        slot = math.ceil(slot / width) * width
        put(group, slot, rank, pairs, f, bias)
        if tokens:
            runs.append(SlotRun(slot, width, tokens))
            owners += [(pairs, f)] * tokens
        slot += width
    total = len(owners) + base
    x = torch.randn(total, IN, dtype=torch.float64)
    product = torch.randn(total, sum(OUTS), dtype=torch.float64)
    y = product.clone() if bias is None else product + bias
    before = y.clone()
    group.add(x, y, plan_batch(tuple(runs), total, CPU, COST))
    for t, (pairs, f) in enumerate(owners):
        torch.testing.assert_close(y[t], alone(x[t], product[t], bias, pairs, f))
    assert torch.equal(y[len(owners) :], before[len(owners) :])


@pytest.mark.parametrize("copied", [False, True])
def test_factors_go_with_their_adapter(copied):
    """Plain pairs that are written over it have none of them."""
    group = SlotGroup(IN, OUTS, 8, R, dtype=torch.float64, device=CPU)
    staged = group.beside(torch.zeros(2 * group.elements, dtype=torch.float64), 2)
    pairs, f = made(0, 8, True)
    put(staged, 0, 8, pairs, f, None)
    group.take(4, staged)
    plan = plan_batch((SlotRun(4, 2, 1),), 1, CPU, COST)
    assert group.has_factors(plan.slots)
    assert not group.has_factors(frozenset({0, 1}))
    x, product = torch.randn(1, IN).double(), torch.randn(1, sum(OUTS)).double()
    y = product.clone()
    group.add(x, y, plan)
    torch.testing.assert_close(y[0], alone(x[0], product[0], None, pairs, f))
    other, _ = made(1, 8, False)
    if copied:
        staged = group.beside(torch.zeros(2 * group.elements, dtype=torch.float64), 2)
        put(staged, 0, 8, other, None, None)
        group.take(4, staged)
    else:
        put(group, 4, 8, other, None, None)
    assert not group.has_factors(plan.slots)
    y = product.clone()
    group.add(x, y, plan)
    torch.testing.assert_close(y[0], alone(x[0], product[0], None, other, None))
