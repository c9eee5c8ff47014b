"""The compiled products of a mixed batch against a loop over tokens, in each set that runs here."""

import pytest
import torch

from lorakit.kernels import native
from lorakit.kernels.slot_plan import Costs, SlotRun, plan_batch
from lorakit.kernels.slots import SlotGroup

pytest.importorskip("lorakit_kernels")
CPU = torch.device("cpu")
FOUND = native.library()
SETS = [] if isinstance(FOUND, str) else sorted(native.usable(FOUND))
# In, out of the linears, rank of a slot: multiples of no vector, chunks of one column, one linear, many.
SHAPES = [
    (37, (10, 6, 6), 4),
    (64, (96,), 16),
    (19, (7, 5), 3),
    (130, (64, 32, 32), 8),
    (8, (40,), 1),
]
RUNS = [
    (SlotRun(0, 1, 1),),
    (SlotRun(0, 1, 4), SlotRun(2, 2, 3), SlotRun(5, 1, 2)),
    (SlotRun(1, 1, 1), SlotRun(4, 4, 9), SlotRun(8, 1, 5)),
]
SLOTS = 12


@pytest.fixture(params=SETS)
def chosen(request, monkeypatch):
    """A set, forced."""
    monkeypatch.setenv(native.VARIABLE, request.param)
    return request.param


def case(shape, runs, dtype):
    """A group that is full, inputs, outputs so far, and the plan; two tokens are the base's."""
    inner, outs, rank = shape
    g = torch.Generator().manual_seed(3)
    group = SlotGroup(inner, outs, SLOTS, rank, dtype=dtype, device=CPU)
    group.A.copy_(torch.randn(group.A.shape, generator=g))
    group.B.copy_(torch.randn(group.B.shape, generator=g) / rank)
    group._filled = set(range(SLOTS))
    tokens = sum(run.rows for run in runs) + 2
    x = torch.randn(tokens, inner, generator=g).to(dtype)
    y = torch.randn(tokens, sum(outs), generator=g).to(dtype)
    return group, x, y, plan_batch(runs, tokens, CPU, Costs(1, 1, 1))


def by_the_loop(group, x, y, runs, rounded):
    """In float64, token by token, from the slots themselves; h in the precision of the kernel."""
    out, token = y.double().clone(), 0
    chunks = group.B.shape[1]
    per = [n // group.chunk for n in group.out_features]
    owners = [i for i, count in enumerate(per) for _ in range(count)]
    for run in runs:
        for _ in range(run.rows):
            for slot in range(run.slot, run.slot + run.width):
                h = group.A[slot].double() @ x[token].double()  # (linears, R)
                for c in range(chunks):
                    part = slice(c * group.chunk, (c + 1) * group.chunk)
                    out[token, part] += h[owners[c]] @ group.B[slot, c].double()
            token += 1
    return out.to(rounded)


@pytest.mark.parametrize("runs", RUNS, ids=["one", "three", "wide"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_token_meets_its_own_adapter(chosen, shape, runs):
    dtype = native.FORMATS[chosen]
    group, x, y, plan = case(shape, runs, dtype)
    assert group._compiled is not None
    expected = by_the_loop(group, x, y, runs, torch.float64)
    untouched = y[-2:].clone()
    group.add(x, y, plan)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * 8)
    assert torch.equal(y[-2:], untouched)  # tokens of the base


def test_neither_threads_nor_neighbours_change_a_bit(chosen):
    """A token's sums have one order, alone or among others, on one thread or two."""
    dtype = native.FORMATS[chosen]
    group, x, y, plan = case(SHAPES[3], RUNS[2], dtype)
    made = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out = y.clone()
        group.add(x, out, plan)
        made.append(out)
    torch.set_num_threads(before)
    assert torch.equal(*made)
    token = 0
    for run in RUNS[2]:
        for _ in range(run.rows):
            alone = y[token : token + 1].clone()
            one = plan_batch((SlotRun(run.slot, run.width, 1),), 1, CPU, Costs(1, 1, 1))
            group.add(x[token : token + 1], alone, one)
            assert torch.equal(alone[0], made[0][token])
            token += 1


def test_a_strided_output_takes_the_plain_way(chosen):
    group, x, y, plan = case(SHAPES[1], RUNS[1], native.FORMATS[chosen])
    wide = torch.zeros(y.shape[0], 2 * y.shape[1], dtype=y.dtype)
    part = wide[:, ::2]
    part.copy_(y)
    group.add(x, part, plan)
    group.add(x, y, plan)
    torch.testing.assert_close(part, y, rtol=2e-2, atol=2e-2)
