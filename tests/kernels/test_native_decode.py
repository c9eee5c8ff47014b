"""A compiled step of a decoder against the formulas in float64, sequence by sequence."""

import math
from types import SimpleNamespace

import pytest
import torch

from lorakit.kernels import native
from lorakit.kernels.decode import BlockTensors, CompiledDecoder
from lorakit.kernels.slot_plan import Costs, SlotRun, plan_batch, runs_of
from lorakit.kernels.slots import SlotGroup

pytest.importorskip("lorakit_kernels")
FOUND = native.library()
if isinstance(FOUND, str) or "avx2" not in native.usable(FOUND):
    pytest.skip("no avx2 here", allow_module_level=True)
CPU, COST = torch.device("cpu"), Costs(1, 1, 1)
VOCABULARY, RANK, SLOTS, BLOCKS = 53, 5, 10, 2


@pytest.fixture(autouse=True)
def avx2(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "avx2")


def decoder(D, heads, keys, E, mlp, *, bias=False, head_norms=False, window=None, chunk=None):
    """Random weights, and slots that are all full; D, mlp and outputs are multiples of nothing."""
    g = torch.Generator().manual_seed(5)

    def draw(*shape, scale=1.0):
        return torch.randn(*shape, generator=g) * scale

    def linear(out, inner):
        return draw(out, inner, scale=inner**-0.5), draw(out) if bias else None

    def norm(n):
        return 1 + draw(n, scale=0.2), 1e-5

    qkv = (heads + 2 * keys) * E
    blocks = [
        BlockTensors(
            (norm(D), norm(D)),
            (norm(E), norm(E)) if head_norms else None,
            (linear(qkv, D), linear(D, heads * E), linear(2 * mlp, D), linear(D, mlp)),
            E**-0.5,
            window if i else None,
            chunk if i else None,
        )
        for i in range(BLOCKS)
    ]
    last, head = norm(D), linear(VOCABULARY, D)
    shapes = [(D, (heads * E, keys * E, keys * E)), (heads * E, (D,)), (D, (mlp, mlp)), (mlp, (D,))]
    groups = []
    for inner, outs in [*(shapes * BLOCKS), (D, (VOCABULARY,))]:
        group = SlotGroup(inner, outs, SLOTS, RANK, dtype=torch.float32, device=CPU)
        group.A.copy_(draw(*group.A.shape, scale=inner**-0.5))
        group.B.copy_(draw(*group.B.shape, scale=0.5))
        group._filled = set(range(SLOTS))
        groups.append(group)
    compiled = CompiledDecoder.of(blocks, last, head, (heads, keys, E))
    assert compiled is not None
    compiled.use(groups)
    return SimpleNamespace(
        blocks=blocks, last=last, head=head, groups=groups, compiled=compiled,
        heads=heads, keys=keys, E=E, D=D, mlp=mlp,
    )  # fmt: skip


def angles(positions, E):
    rates = 10000 ** (-torch.arange(E // 2, dtype=torch.float64) / (E // 2))
    turned = positions[:, None].double() * rates
    both = torch.cat((turned, turned), dim=1)
    return both.cos(), both.sin()


def normed(x, norm):
    weight, eps = norm
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def adapted(x, linear, group, slots):
    """X W' + bias + the products with every slot of the adapter, in float64."""
    weight, bias = linear
    y = x @ weight.double().t()
    if bias is not None:
        y = y + bias.double()
    for slot in slots:
        at = 0
        for i, out in enumerate(group.out_features):
            chunks = [c for c, owner in enumerate(group.owners.tolist()) if owner == i]
            B = torch.cat([group.B[slot, c] for c in chunks], dim=1).double()
            y[:, at : at + out] += x @ group.A[slot, i].double().t() @ B
            at += out
    return y


def whole(d, x, slots):
    """Logits of one sequence, (tokens, vocabulary): the formulas as they stand."""
    x, T, groups = x.double(), x.shape[0], iter(d.groups)
    cos, sin = angles(torch.arange(T), d.E)

    def heads_of(y, first, count, norm):
        h = y[:, first * d.E : (first + count) * d.E].view(T, count, d.E)
        if norm is not None:
            h = normed(h, norm)
        a, b = h.chunk(2, dim=-1)
        return h * cos[:, None] + torch.cat((-b, a), dim=-1) * sin[:, None]

    place = torch.arange(T)
    for block in d.blocks:
        y = adapted(normed(x, block.norms[0]), block.linears[0], next(groups), slots)
        norms = block.head_norms or (None, None)
        q = heads_of(y, 0, d.heads, norms[0])
        k = heads_of(y, d.heads, d.keys, norms[1]).repeat_interleave(d.heads // d.keys, dim=1)
        v = y[:, (d.heads + d.keys) * d.E :].view(T, d.keys, d.E)
        v = v.repeat_interleave(d.heads // d.keys, dim=1)
        seen = place <= place[:, None]
        if block.window:
            seen &= place[:, None] - place < block.window
        if block.chunk:
            seen &= place[:, None] // block.chunk == place // block.chunk
        s = torch.einsum("qhe,khe->hqk", q, k) * block.scale
        p = s.masked_fill(~seen, -math.inf).softmax(-1)
        o = torch.einsum("hqk,khe->qhe", p, v).reshape(T, -1)
        x = x + adapted(o, block.linears[1], next(groups), slots)
        y = adapted(normed(x, block.norms[1]), block.linears[2], next(groups), slots)
        act = torch.nn.functional.silu(y[:, : d.mlp]) * y[:, d.mlp :]
        x = x + adapted(act, block.linears[3], next(groups), slots)
    return adapted(normed(x, d.last), d.head, next(groups), slots)


def steps(d, sequences, counts, slots_of):
    """Logits after every step of all sequences together, (steps, sequences, vocabulary).

    Args:
        d: the decoder.
        sequences: embeddings of each, (tokens, D).
        counts: tokens of each sequence in each step.
        slots_of: (first slot, width) of each, ascending, None last for the base.
    """
    size = 256
    caches = [torch.full((len(sequences) * size, 2, d.keys, d.E), 7.0) for _ in d.blocks]
    past, made = [0] * len(sequences), []
    for step in zip(*counts, strict=True):
        x = torch.cat([s[p : p + n] for s, p, n in zip(sequences, past, step, strict=True)])
        positions = torch.cat([torch.arange(p, p + n) for p, n in zip(past, step, strict=True)])
        runs = tuple(SlotRun(*s, n) for s, n in zip(slots_of, step, strict=True) if s is not None)
        keep = (torch.tensor(step).cumsum(0) - 1).tolist()
        batch = plan_batch(runs, len(x), CPU, COST)
        kept = plan_batch(runs_of(runs, keep), len(keep), CPU, COST)
        batch = type(batch)(**{**vars(batch), "kept": kept})
        places = [(i * size, size, p, n) for i, (p, n) in enumerate(zip(past, step, strict=True))]
        turned = tuple(each.float() for each in angles(positions, d.E))
        logits = d.compiled.logits(x.clone(), turned, places, torch.tensor(keep), caches, batch)
        made.append(logits)
        past = [p + n for p, n in zip(past, step, strict=True)]
    return torch.stack(made)


SHAPES = {
    "three heads a key, outputs of no multiple": {
        "D": 37,
        "heads": 6,
        "keys": 2,
        "E": 8,
        "mlp": 45,
    },
    "four, with biases": {"D": 50, "heads": 4, "keys": 1, "E": 24, "mlp": 61, "bias": True},
    "one, norms of heads": {"D": 40, "heads": 3, "keys": 3, "E": 32, "mlp": 99, "head_norms": True},
    "five, a window": {"D": 33, "heads": 5, "keys": 1, "E": 40, "mlp": 50, "window": 6},
    "two, chunks": {"D": 33, "heads": 4, "keys": 2, "E": 16, "mlp": 50, "chunk": 7},
    "deeper than a tile": {"D": 41, "heads": 2, "keys": 2, "E": 8, "mlp": 1001},
}
# Prompts in pieces, then token by token; the second has more tokens than one block of them.
COUNTS = [(5, 1, 1, 3), (130, 1, 19, 1), (1, 2, 1, 1), (9, 1, 1, 1), (20, 4, 1, 1)]
SLOTS_OF = [(0, 1), (2, 2), (4, 4), (9, 1), None]


@pytest.fixture(params=SHAPES, ids=str)
def prepared(request):
    d = decoder(**SHAPES[request.param])
    g = torch.Generator().manual_seed(6)
    sequences = [torch.randn(sum(counts), d.D, generator=g) for counts in COUNTS]
    return d, sequences


def test_steps_of_many_sequences_are_each_sequence_alone(prepared):
    d, sequences = prepared
    made = steps(d, sequences, COUNTS, SLOTS_OF)
    for i, (x, counts, slots) in enumerate(zip(sequences, COUNTS, SLOTS_OF, strict=True)):
        mine = range(slots[0], slots[0] + slots[1]) if slots else ()
        ends = (torch.tensor(counts).cumsum(0) - 1).tolist()
        expected = whole(d, x, mine)[ends]
        torch.testing.assert_close(made[:, i].double(), expected, rtol=2e-4, atol=2e-4)


def test_neither_threads_nor_neighbours_change_a_bit(prepared):
    d, sequences = prepared
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(steps(d, sequences, COUNTS, SLOTS_OF))
    torch.set_num_threads(before)
    assert torch.equal(*made)
    for i in (1, 2, 4):
        alone = steps(d, [sequences[i]], [COUNTS[i]], [SLOTS_OF[i]])
        assert torch.equal(alone[:, 0], made[0][:, i])


def test_an_adapter_that_leaves_layers_alone_costs_and_changes_nothing_there():
    d = decoder(**SHAPES["four, with biases"])
    for group in d.groups[1:]:  # q, k and v of the first block alone
        group._filled = set()
    x = torch.randn(6, d.D, generator=torch.Generator().manual_seed(7))
    made = steps(d, [x], [(5, 1)], [(3, 1)])
    for group in d.groups[1:]:
        group.B.zero_()
    expected = whole(d, x, [3])[[4, 5]]
    torch.testing.assert_close(made[:, 0].double(), expected, rtol=2e-4, atol=2e-4)


def test_what_is_not_finite_is_seen_and_stays_where_it_is():
    d = decoder(**SHAPES["two, chunks"])
    g = torch.Generator().manual_seed(8)
    sequences = [torch.randn(4, d.D, generator=g) for _ in range(3)]
    expected = steps(d, sequences, [(3, 1)] * 3, [None] * 3)
    sequences[1][2, 0] = math.nan
    made = steps(d, sequences, [(3, 1)] * 3, [None] * 3)
    assert made[:, 1].isnan().all()
    assert torch.equal(made[:, [0, 2]], expected[:, [0, 2]])


@pytest.mark.parametrize("change", ["format", "strided", "heads", "plain"])
def test_what_does_not_fit_is_left_to_torch(monkeypatch, change):
    d = decoder(**SHAPES["two, chunks"])
    last, sizes = d.last, (d.heads, d.keys, d.E)
    if change == "format":
        last = (last[0].double(), last[1])
    elif change == "strided":
        last = (torch.stack((last[0], last[0]), dim=1)[:, 0], last[1])
    elif change == "heads":
        sizes = (d.heads * 4, d.keys * 4, d.E // 4)
    else:
        monkeypatch.setenv(native.VARIABLE, "plain")
    assert CompiledDecoder.of(d.blocks, last, d.head, sizes) is None
