"""Many adapters in one batch, against a loop over tokens."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.kernels.slot_plan import Costs, SlotRun, costs, plan_batch
from lorakit.kernels.slots import SlotGroup

CPU = torch.device("cpu")
IN, OUTS, R = 12, (10, 6, 6), 4
# Segments dear, slots dear, and products dear: few wide segments, or many narrow ones.
COSTS = [Costs(1e6, 1, 1), Costs(0, 1, 1), Costs(5, 1, 0.1)]


def random_pairs(rank, seed, targets=(0, 1, 2)):
    g = torch.Generator().manual_seed(seed)
    return {
        i: (
            torch.randn(rank, IN, generator=g, dtype=torch.float64),
            torch.randn(OUTS[i], rank, generator=g, dtype=torch.float64),
            0.5 + seed % 3,
        )
        for i in targets
    }


def filled(adapters, slots=40, dtype=torch.float64):
    group = SlotGroup(IN, OUTS, slots, R, dtype=dtype, device=CPU)
    for slot, rank, pairs in adapters:
        group.write(slot, math.ceil(rank / R), [pairs.get(i) for i in range(len(OUTS))])
    return group


def by_the_loop(x, y, owners):
    """y_t += s B (A x_t), token by token."""
    wide = y.clone()
    out = wide.split(OUTS, dim=1)
    for t, pairs in enumerate(owners):
        for i, (A, B, s) in (pairs or {}).items():
            out[i][t] += s * (B @ (A @ x[t]))
    return wide


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(
        st.tuples(
            st.integers(0, 3),  # free slots before it
            st.sampled_from([1, 3, 4, 5, 8, 11]),  # rank
            st.integers(0, 5),  # tokens; 0: resident, and not in this step
            st.sampled_from([(0, 1, 2), (0, 2), (1,)]),
        ),
        max_size=5,
    ),
    base=st.integers(0, 3),
    cost=st.sampled_from(COSTS),
)
def test_every_token_gets_its_own_adapter_and_no_other(chosen, base, cost):
    adapters, runs, owners, slot = [], [], [], 0
    for seed, (gap, rank, tokens, targets) in enumerate(chosen):
        pairs, width = random_pairs(rank, seed, targets), math.ceil(rank / R)
        slot = math.ceil((slot + gap) / width) * width
        adapters.append((slot, rank, pairs))
        if tokens:
            runs.append(SlotRun(slot, width, tokens))
            owners += [pairs] * tokens
        slot += width
    owners += [None] * base
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(owners), IN, generator=g, dtype=torch.float64)
    wide = torch.randn(len(owners), sum(OUTS), generator=g, dtype=torch.float64)
    expected = by_the_loop(x, wide, owners)
    filled(adapters).add(x, wide, plan_batch(tuple(runs), len(owners), CPU, cost))
    torch.testing.assert_close(wide, expected, rtol=1e-12, atol=1e-12)


def test_the_bases_rows_keep_their_bits():
    group = filled([(0, 4, random_pairs(4, 0)), (1, 4, random_pairs(4, 1))])
    x = torch.randn(4, IN, dtype=torch.float64)
    y = torch.randn(4, sum(OUTS), dtype=torch.float64)
    before = y.clone()
    group.add(x, y, plan_batch((SlotRun(0, 1, 1), SlotRun(1, 1, 1)), 4, CPU, COSTS[0]))
    assert torch.equal(y[2:], before[2:])
    assert not torch.equal(y[:2], before[:2])


def test_an_adapter_that_overflows_reaches_no_other():
    huge = {i: (A * 3e38, B, s) for i, (A, B, s) in random_pairs(4, 0).items()}
    group = filled([(0, 4, huge), (1, 4, random_pairs(4, 1))], dtype=torch.float32)
    x, y = torch.full((3, IN), 9.0), torch.zeros(3, sum(OUTS))
    group.add(x, y, plan_batch((SlotRun(0, 1, 2), SlotRun(1, 1, 1)), 3, CPU, COSTS[0]))
    assert not y[:2].isfinite().all()
    assert y[2].isfinite().all()


def test_a_slot_written_again_holds_nothing_of_what_it_held():
    group = filled([(0, 8, random_pairs(8, 0))])
    group.write(0, 2, [None, random_pairs(3, 7)[1], None])
    once = filled([(0, 8, {1: random_pairs(3, 7)[1]})])
    assert torch.equal(group.A, once.A)
    assert torch.equal(group.B, once.B)
    group.write(0, 2, [None, None, None])
    assert not group.A.any()
    assert not group.B.any()


def test_slots_copied_from_another_group_are_those():
    group, other = (
        filled([(0, 8, random_pairs(8, 0))]),
        filled([(0, 8, random_pairs(8, 1))], slots=2),
    )
    group.take(4, other)
    group.take(0, filled([], slots=2))
    expected = filled([(4, 8, random_pairs(8, 1))])
    assert torch.equal(group.A, expected.A)
    assert torch.equal(group.B, expected.B)


def test_slots_elsewhere_are_like_their_own_and_share_nothing():
    group = filled([(0, 8, random_pairs(8, 0))])
    before = group.A.clone()
    storage = torch.zeros(2 * group.elements, dtype=group.A.dtype)
    other = group.beside(storage, 2)
    pairs = random_pairs(8, 1)
    other.write(0, math.ceil(8 / R), [pairs.get(i) for i in range(len(OUTS))])
    expected = filled([(0, 8, random_pairs(8, 1))], slots=2)
    assert torch.equal(other.A, expected.A)
    assert torch.equal(other.B, expected.B)
    assert torch.equal(group.A, before)
    assert storage.count_nonzero() == other.A.count_nonzero() + other.B.count_nonzero()
    group.take(4, other)
    assert torch.equal(group.A[4:6], expected.A)


def brute_force(runs, cost):
    """The least cost over all ways to cut a list of runs."""
    n, least = len(runs), math.inf
    for cuts in itertools.product([False, True], repeat=n - 1):
        edges = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], n]
        total = 0.0
        for a, b in itertools.pairwise(edges):
            span = runs[b - 1].slot + runs[b - 1].width - runs[a].slot
            total += cost.segment + span * (
                cost.slot + cost.product * max(r.rows for r in runs[a:b])
            )
        least = min(least, total)
    return least


@pytest.mark.parametrize("cost", [Costs(220, 16, 0.3), Costs(55, 26, 1.6), Costs(5, 1, 0.1)])
def test_tokens_are_cut_where_it_costs_least(cost):
    runs = (
        SlotRun(0, 1, 1),
        SlotRun(1, 1, 4),
        SlotRun(2, 1, 200),
        SlotRun(9, 1, 1),
        SlotRun(30, 1, 2),
        SlotRun(31, 1, 1),
    )
    plan = plan_batch(runs, 300, CPU, cost)
    total = sum(
        cost.segment + (s.high - s.low) * (cost.slot + cost.product * s.tokens_each)
        for s in plan.segments
    )
    assert total == pytest.approx(brute_force(runs, cost))


def test_dear_calls_make_one_segment_and_cheap_ones_many():
    runs = tuple(SlotRun(i, 1, 1) for i in range(32))
    assert len(plan_batch(runs, 32, CPU, Costs(1e9, 1, 1)).segments) == 1
    far = tuple(SlotRun(9 * i, 1, 1) for i in range(4))
    assert len(plan_batch(far, 4, CPU, Costs(0, 1, 1)).segments) == 4
    assert (
        costs(CPU, torch.bfloat16, 10_176, 16).segment
        > costs(CPU, torch.float32, 10_176, 16).segment
    )


@pytest.mark.parametrize(
    "runs",
    [
        (SlotRun(1, 1, 1), SlotRun(0, 1, 1)),
        (SlotRun(0, 2, 1), SlotRun(1, 1, 1)),
        (SlotRun(0, 1, 9),),
        (SlotRun(1, 2, 1),),
        (SlotRun(1, 1, 0),),
    ],
)
def test_runs_that_cannot_be_are_refused(runs):
    with pytest.raises(ValueError, match="runs"):
        plan_batch(runs, 4, CPU, COSTS[0])


def test_other_tokens_than_were_planned_are_refused():
    group = filled([(0, 4, random_pairs(4, 0))])
    plan = plan_batch((SlotRun(0, 1, 1),), 1, CPU, COSTS[0])
    with pytest.raises(ValueError, match="2 tokens came, 1 were planned"):
        group.add(torch.zeros(2, IN), torch.zeros(2, sum(OUTS)), plan)


@pytest.mark.parametrize(
    ("A", "B"), [((4, IN + 1), (OUTS[0], 4)), ((4, IN), (OUTS[0], 5)), ((9, IN), (OUTS[0], 9))]
)
def test_pairs_of_other_shapes_are_refused(A, B):
    with pytest.raises(ValueError, match=r"for a layer of|hold no rank"):
        filled([]).write(0, 2, [(torch.zeros(A), torch.zeros(B), 1.0), None, None])
