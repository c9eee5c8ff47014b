"""The hot path of a block against autograd through the formulas, and finite differences."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lorakit.kernels import block
from lorakit.kernels.block import gated_mlp, normed_group, residual_linear
from lorakit.kernels.groups import Linear, LinearGroup, LowRank, flat
from lorakit.lora import LoraSpec, attach, detach, equations, lora_layers

T, D, M, R = 5, 6, 7, 3
EPS = 1e-3


def draw(*shape, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def linear(out, into, seed, *, pair=True, bias=False, rank=R, dtype=torch.float64):
    wide = torch.promote_types(dtype, torch.float32)
    A, B = draw(rank, into, seed=seed + 2, dtype=wide), draw(out, rank, seed=seed + 3, dtype=wide)
    return Linear(
        draw(out, into, seed=seed, dtype=dtype),
        draw(out, seed=seed + 1, dtype=dtype) if bias else None,
        (LowRank(A, B, 0.3 + seed % 5),) if pair else (),
    )


# What the formulas say, by ordinary operations.


def slow_norm(x, weight):
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def slow_linear(n, each):
    y = n @ each.weight.t()
    if each.bias is not None:
        y = y + each.bias
    low = torch.zeros_like(y)
    for pair in each.pairs:
        rows = slice(*(pair.rows or (0, len(n))))
        mask = torch.zeros(len(n), 1, dtype=n.dtype)
        mask[rows] = 1
        low = low + mask * equations.low_rank(n, pair.A, pair.B, pair.scale)
    return y + low


def slow_group(x, norm, linears):
    n = slow_norm(x, norm)
    return tuple(slow_linear(n, each) for each in linears)


def slow_mlp(x, norm, gate, up, down):
    n = slow_norm(x, norm)
    return x + slow_linear(F.silu(slow_linear(n, gate)) * slow_linear(n, up), down)


def trainables(linears, *, weights=False):
    found = []
    for each in linears:
        found += [t for t in (each.weight, each.bias) if weights and t is not None]
        found += [t for pair in each.pairs for t in (pair.A, pair.B)]
    return found


CASES = {
    "all adapted": [True, True, True],
    "one without a pair": [True, False, True],
    "none adapted": [False, False, False],
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def three(request):
    """Linears of unlike widths and ranks on D, some with a pair, one with a bias."""
    sizes = [(4, 3), (6, 1), (5, 2)]
    return [
        linear(out, D, 10 * i + 1, pair=has, bias=i == 1, rank=rank)
        for i, ((out, rank), has) in enumerate(zip(sizes, request.param, strict=True))
    ]


def mlp_of(pairs, dtype=torch.float64):
    sizes = [(M, D), (M, D), (D, M)]
    return [
        linear(out, into, 20 * i + 5, pair=has, bias=i == 2, dtype=dtype)
        for i, ((out, into), has) in enumerate(zip(sizes, pairs, strict=True))
    ]


@pytest.mark.parametrize("weights", [False, True], ids=["frozen", "full fine-tuning"])
def test_gradcheck_of_a_normed_group(three, weights):
    x, norm = draw(T, D, seed=0), draw(D, seed=1)
    moving = trainables(three, weights=weights) + ([norm] if weights else [])
    inputs = [t.requires_grad_() for t in (x, *moving)]
    assert torch.autograd.gradcheck(lambda *_: normed_group(x, norm, EPS, three), inputs)


@pytest.mark.parametrize("weights", [False, True], ids=["frozen", "full fine-tuning"])
@pytest.mark.parametrize("pair", [True, False])
def test_gradcheck_of_a_residual_linear(pair, weights):
    x, o = draw(T, D, seed=0), draw(T, M, seed=1)
    only = linear(D, M, 3, pair=pair, bias=True)
    inputs = [t.requires_grad_() for t in (x, o, *trainables([only], weights=weights))]
    assert torch.autograd.gradcheck(lambda *_: residual_linear(x, o, only), inputs)


@pytest.mark.parametrize("weights", [False, True], ids=["frozen", "full fine-tuning"])
@pytest.mark.parametrize("pairs", CASES.values(), ids=CASES.keys())
def test_gradcheck_of_a_gated_mlp(pairs, weights):
    x, norm = draw(T, D, seed=0), draw(D, seed=1)
    linears = mlp_of(pairs)
    moving = trainables(linears, weights=weights) + ([norm] if weights else [])
    inputs = [t.requires_grad_() for t in (x, *moving)]
    assert torch.autograd.gradcheck(lambda *_: gated_mlp(x, norm, EPS, *linears), inputs)


def test_gradcheck_where_nobody_wants_a_gradient_of_x(three):
    x, norm = draw(T, D, seed=0), draw(D, seed=1)
    inputs = [t.requires_grad_() for t in trainables(three)]
    if inputs:
        assert torch.autograd.gradcheck(lambda *_: normed_group(x, norm, EPS, three), inputs)
    else:
        assert not any(y.requires_grad for y in normed_group(x, norm, EPS, three))


def test_long_rows_are_taken_in_parts_of_the_cache():
    """More rows than one part holds, so that the parts' edges are in the comparison."""
    x, norm = draw(600, D, seed=0), draw(D, seed=1)
    linears = mlp_of([True, True, True])
    inputs = [t.requires_grad_() for t in (x, *trainables(linears))]
    grad = draw(600, D, seed=2)
    got, expected = gated_mlp(x, norm, EPS, *linears), slow_mlp(x, norm, *linears)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(got, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# bfloat16 keeps 8 bits: every stored number is off by up to 2^-9, a path has about ten of them, and
# errors of sums grow with the root of their terms: a few percent of the largest value.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("what", ["group", "residual", "mlp"])
def test_values_and_gradients_are_those_of_the_formulas(what, dtype, tolerance):
    x, norm, o = draw(T, D, seed=0), 1 + draw(D, seed=1) / 4, draw(T, M, seed=2)
    match what:
        case "group":
            linears = [linear(4, D, 1, dtype=dtype), linear(3, D, 7, dtype=dtype, bias=True)]
            inputs = [x, norm]
        case "residual":
            linears, inputs = [linear(D, M, 3, dtype=dtype)], [x, o]
        case "mlp":
            linears, inputs = mlp_of([True, True, True], dtype), [x, norm]

    def compute(fast, kind):
        tensors = [t.to(kind) for t in inputs]
        parts = [
            Linear(
                e.weight.to(kind),
                None if e.bias is None else e.bias.to(kind),
                tuple(
                    LowRank(
                        (p.A if fast else p.A.to(kind)).detach().requires_grad_(),
                        (p.B if fast else p.B.to(kind)).detach().requires_grad_(),
                        p.scale,
                    )
                    for p in e.pairs
                ),
            )
            for e in linears
        ]
        tensors[0].requires_grad_()
        match what, fast:
            case "group", True:
                ys = normed_group(*tensors, EPS, parts)
            case "group", False:
                ys = slow_group(*tensors, parts)
            case "residual", True:
                ys = (residual_linear(*tensors, *parts),)
            case "residual", False:
                ys = (tensors[0] + slow_linear(tensors[1], *parts),)
            case "mlp", True:
                ys = (gated_mlp(*tensors, EPS, *parts),)
            case "mlp", False:
                ys = (slow_mlp(*tensors, *parts),)
        wanted = [tensors[0], *trainables(parts)]
        grads = torch.autograd.grad(
            ys, wanted, [draw(*y.shape, seed=40 + i).to(kind) for i, y in enumerate(ys)]
        )
        return [*ys, *grads]

    # The exact values start from the same rounded numbers.
    inputs = [t.to(dtype).double() for t in inputs]
    expected = compute(False, torch.float64)
    for got, due in zip(compute(True, dtype), expected, strict=True):
        error = (got.double() - due).abs().max().item()
        assert error <= tolerance * due.abs().max().item()
    kinds = {t.dtype for t in compute(True, dtype)}
    assert kinds == {dtype, torch.float32}


@pytest.mark.parametrize("what", ["linear", "group", "residual", "mlp"])
def test_in_16_bits_a_small_pair_is_not_lost(what):
    """An update far below the last place of what it is added to still arrives, on average.

    The adapted output less the same with B = 0, held against the exact difference: the slope of
    one on the other is 1 where nothing is lost, and falls to 0 where the low-rank product is added
    to numbers that are rounded already.
    """
    rows, width = 512, 64
    x, o = 30 * draw(rows, width, seed=0), draw(rows, width, seed=1)
    norm = 1 + draw(width, seed=2) / 4

    def some(seed, *, zero):
        weight = draw(width, width, seed=seed) / 8
        A, B = draw(R, width, seed=seed + 1) / 8, draw(width, R, seed=seed + 2) / 500
        return weight, A, torch.zeros_like(B) if zero else B

    def made(dtype, *, zero):
        pairs = [some(10 * i, zero=zero) for i in range(3)]
        linears = [
            Linear(W.to(dtype), None, (LowRank(A.float(), B.float(), 1.0),)) for W, A, B in pairs
        ]
        stream, heads, weight = (t.to(dtype) for t in (x, o, norm))
        match what:
            case "linear":
                y = block.linear(heads, linears[0])
            case "group":
                y = torch.cat(normed_group(stream, weight, EPS, linears), dim=1)
            case "residual":
                y = residual_linear(stream, heads, linears[0])
            case "mlp":
                y = gated_mlp(stream, weight, EPS, *linears)
        return y.double()

    exact = made(torch.float64, zero=False) - made(torch.float64, zero=True)
    came = made(torch.bfloat16, zero=False) - made(torch.bfloat16, zero=True)
    slope = float((came * exact).sum() / exact.square().sum())
    assert slope == pytest.approx(1, abs=0.15)


def for_rows(each, rows, seed, rank):
    """The same frozen linear with one pair more, for these rows alone."""
    out, into = each.weight.shape
    pair = LowRank(draw(rank, into, seed=seed), draw(out, rank, seed=seed + 1), 0.5, rows)
    return Linear(each.weight, each.bias, (*each.pairs, pair))


class TestPairsForSomeOfTheRows:
    """Two jobs and a row of neither; one job has no pair at the second linear."""

    def linears(self, sizes):
        made = []
        for i, (out, into) in enumerate(sizes):
            each = linear(out, into, 10 * i + 1, pair=False, bias=i == 0)
            each = for_rows(each, (0, 2), 30 * i + 5, 2)
            made.append(each if i == 1 else for_rows(each, (2, 4), 30 * i + 7, 3))
        return made

    def check(self, fast, slow, inputs):
        assert torch.autograd.gradcheck(lambda *_: fast(), inputs)
        got, expected = fast(), slow()
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_group(self):
        x, norm, linears = draw(T, D, seed=0), draw(D, seed=1), self.linears([(4, D), (6, D)])
        inputs = [t.requires_grad_() for t in (x, *trainables(linears))]
        self.check(
            lambda: normed_group(x, norm, EPS, linears),
            lambda: slow_group(x, norm, linears),
            inputs,
        )

    def test_linear_without_a_residual(self):
        o, (only, _) = draw(T, M, seed=0), self.linears([(D, M), (D, M)])
        inputs = [t.requires_grad_() for t in (o, *trainables([only]))]
        self.check(lambda: [residual_linear(None, o, only)], lambda: [slow_linear(o, only)], inputs)

    def test_mlp(self):
        x, norm = draw(T, D, seed=0), draw(D, seed=1)
        linears = self.linears([(M, D), (M, D), (D, M)])
        inputs = [t.requires_grad_() for t in (x, *trainables(linears))]
        self.check(
            lambda: [gated_mlp(x, norm, EPS, *linears)],
            lambda: [slow_mlp(x, norm, *linears)],
            inputs,
        )


class TestSpareColumns(TestPairsForSomeOfTheRows):
    """The same where every pair takes a multiple of 4 columns of h, as a multiple of 8 in 16 bits."""

    @pytest.fixture(autouse=True)
    def spare(self, monkeypatch):
        monkeypatch.setattr(LowRank, "columns", lambda self, weight: -(-self.A.shape[0] // 4) * 4)

    def test_of_one_job(self):
        x, norm = draw(T, D, seed=0), draw(D, seed=1)
        linears = [linear(out, D, 10 * out, rank=rank) for out, rank in ((4, 3), (6, 1), (5, 4))]
        inputs = [t.requires_grad_() for t in (x, *trainables(linears))]
        self.check(
            lambda: normed_group(x, norm, EPS, linears),
            lambda: slow_group(x, norm, linears),
            inputs,
        )


@pytest.mark.parametrize(
    ("dtype", "unlike", "widths"),
    [
        (torch.bfloat16, True, {8, 16}),
        (torch.bfloat16, False, set(range(1, 17))),
        (torch.float32, True, set(range(1, 17))),
    ],
)
def test_in_16_bits_unlike_ranks_have_few_shapes(dtype, unlike, widths):
    """oneDNN compiles each shape anew: ranks 1 to 8 are one, 9 to 16 another."""
    found = set()
    for rank in range(1, 17):
        plain = linear(5, D, 1, rank=rank, dtype=dtype)
        pairs = tuple(replace(pair, unlike=unlike) for pair in plain.pairs)
        (h,) = LinearGroup(*flat([replace(plain, pairs=pairs)])).low(
            draw(T, D, seed=0, dtype=dtype)
        )
        found.add(h.shape[1])
    assert found == widths


def test_ranks_are_unlike_where_a_pattern_says_so():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    for pattern, unlike in (({}, False), ({"1": 3}, True)):
        attach(model, LoraSpec(rank=2, targets=("0", "1"), rank_pattern=pattern))
        assert [layer.pair().unlike for layer in lora_layers(model).values()] == [unlike, unlike]
        assert model[1].pair((0, 2)).rows == (0, 2)
        detach(model)
