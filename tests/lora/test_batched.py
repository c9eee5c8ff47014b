"""Many adapters in one batch, against a loop over tokens."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora.batched import Costs, Run, SlotGroup, costs, plan_batch

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


def filled(adapters, slots=24, dtype=torch.float64):
    group = SlotGroup(IN, OUTS, slots, R, dtype=dtype, device=CPU)
    for slot, rank, pairs in adapters:
        width = math.ceil(rank / R)
        for i in range(len(OUTS)):
            A, B, s = pairs.get(i, (None, None, 0.0))
            group.write(slot, width, i, A, B, s)
    return group


def by_the_loop(x, ys, owners):
    """y_t += s B (A x_t), token by token."""
    out = [y.clone() for y in ys]
    for t, pairs in enumerate(owners):
        for i, (A, B, s) in (pairs or {}).items():
            out[i][t] += s * (B @ (A @ x[t]))
    return out


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
        slot += gap
        pairs, width = random_pairs(rank, seed, targets), math.ceil(rank / R)
        adapters.append((slot, rank, pairs))
        if tokens:
            runs.append(Run(slot, width, tokens))
            owners += [pairs] * tokens
        slot += width
    owners += [None] * base
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(owners), IN, generator=g, dtype=torch.float64)
    wide = torch.randn(len(owners), sum(OUTS), generator=g, dtype=torch.float64)
    ys = wide.split(OUTS, dim=1)
    expected = by_the_loop(x, ys, owners)
    plan = plan_batch(tuple(runs), len(owners), R, CPU, cost)
    filled(adapters).add(x, ys, plan)
    for got, want in zip(ys, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_bases_rows_keep_their_bits():
    group = filled([(0, 4, random_pairs(4, 0)), (1, 4, random_pairs(4, 1))])
    x = torch.randn(4, IN, dtype=torch.float64)
    ys = [torch.randn(4, out, dtype=torch.float64) for out in OUTS]
    before = [y.clone() for y in ys]
    group.add(x, ys, plan_batch((Run(0, 1, 1), Run(1, 1, 1)), 4, R, CPU, COSTS[0]))
    for now, then in zip(ys, before, strict=True):
        assert torch.equal(now[2:], then[2:])
        assert not torch.equal(now[:2], then[:2])


def test_an_adapter_that_overflows_reaches_no_other():
    huge = {i: (A * 3e38, B, s) for i, (A, B, s) in random_pairs(4, 0).items()}
    group = filled([(0, 4, huge), (1, 4, random_pairs(4, 1))], dtype=torch.float32)
    x, ys = torch.full((2, IN), 9.0), [torch.zeros(2, out) for out in OUTS]
    group.add(x, ys, plan_batch((Run(0, 1, 1), Run(1, 1, 1)), 2, R, CPU, COSTS[0]))
    assert not any(y[0].isfinite().all() for y in ys)
    assert all(y[1].isfinite().all() for y in ys)


def test_a_slot_written_again_holds_nothing_of_what_it_held():
    group = filled([(0, 8, random_pairs(8, 0))])
    for i in range(3):
        pair = random_pairs(3, 7, (1,)).get(i, (None, None, 0.0))
        group.write(0, 2, i, *pair)
    assert not group.A[:2, 0].any()
    assert not group.B[2][:2].any()
    assert not group.A[0, 1, 3:].any()
    assert not group.A[1].any()


def test_what_is_not_finite_is_seen():
    group = filled([(0, 4, random_pairs(4, 0))], dtype=torch.float32)
    assert group.finite(0, 1)
    A, B, _ = random_pairs(4, 0)[0]
    group.write(0, 1, 0, A.float(), B.float() * 1e38, 1e9)
    assert not group.finite(0, 1)


def brute_force(runs, cost):
    """The least cost over all ways to cut a list of runs."""
    n, least = len(runs), math.inf
    for cuts in itertools.product([False, True], repeat=n - 1):
        edges = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], n]
        total = 0.0
        for a, b in itertools.pairwise(edges):
            span = runs[b - 1].slot + runs[b - 1].width - runs[a].slot
            total += cost.segment + span * (cost.slot + cost.product * sum(r.rows for r in runs[a:b]))
        least = min(least, total)
    return least


@pytest.mark.parametrize("cost", [Costs(220, 16, 0.3), Costs(55, 26, 1.6), Costs(5, 1, 0.1)])
def test_tokens_are_cut_where_it_costs_least(cost):
    runs = (Run(0, 1, 1), Run(1, 1, 4), Run(2, 2, 200), Run(9, 1, 1), Run(30, 1, 2), Run(31, 1, 1))
    plan = plan_batch(runs, 300, R, CPU, cost)
    total = sum(
        cost.segment + (s.high - s.low) * (cost.slot + cost.product * (s.last - s.first))
        for s in plan.segments
    )
    assert total == pytest.approx(brute_force(runs, cost))


def test_dear_calls_make_one_segment_and_cheap_ones_many():
    runs = tuple(Run(i, 1, 1) for i in range(32))
    assert len(plan_batch(runs, 32, R, CPU, Costs(1e9, 1, 1)).segments) == 1
    assert len(plan_batch(runs, 32, R, CPU, Costs(0, 1, 1)).segments) == 32
    assert costs(CPU, torch.bfloat16, 10_176, 16).segment > costs(CPU, torch.float32, 10_176, 16).segment


@pytest.mark.parametrize(
    "runs", [(Run(1, 1, 1), Run(0, 1, 1)), (Run(0, 2, 1), Run(1, 1, 1)), (Run(0, 1, 9),)]
)
def test_runs_that_cannot_be_are_refused(runs):
    with pytest.raises(ValueError, match="runs|do not fit"):
        plan_batch(runs, 4, R, CPU, COSTS[0])


def test_other_tokens_than_were_planned_are_refused():
    group = filled([(0, 4, random_pairs(4, 0))])
    plan = plan_batch((Run(0, 1, 1),), 1, R, CPU, COSTS[0])
    with pytest.raises(ValueError, match="2 tokens came, 1 were planned"):
        group.add(torch.zeros(2, IN), [torch.zeros(2, out) for out in OUTS], plan)


@pytest.mark.parametrize(
    ("A", "B"), [((4, IN + 1), (OUTS[0], 4)), ((4, IN), (OUTS[0], 5)), ((9, IN), (OUTS[0], 9))]
)
def test_pairs_of_other_shapes_are_refused(A, B):
    with pytest.raises(ValueError, match="hold pairs"):
        filled([]).write(0, 2, 0, torch.zeros(A), torch.zeros(B), 1.0)
