"""Triton kernels in Triton's interpreter on a CPU: against the formulas in float64, and the plain path.

Triton decides when it is imported whether it interprets, and torch imports it: the variable has to be there
before. `make test-triton` sets it.
"""

import logging
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from families import tiny
from lorakit.data.batches import Batch
from lorakit.kernels import block, head, rotary
from lorakit.kernels.gpu import dispatch, pairs
from lorakit.kernels.groups import Linear, LowRank
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import CausalLoss

pytest.importorskip("triton", reason="Triton is not installed: make test-triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here: make test-triton"
)

EPS = 1e-5
FORMATS = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
WIDE, NARROW, HALF = FORMATS


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv(
        "LORAKIT_KERNELS", "triton"
    )  # else compiled ones are, where they are installed
    monkeypatch.setattr(dispatch, "left", {})
    monkeypatch.setattr(dispatch, "_right", set())
    yield
    assert dispatch.left == {}


@pytest.fixture(params=FORMATS, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    return request.param


def draw(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def exact(function, *tensors):
    """A function's answer in float64, and its gradients with the output's gradient that `draw` gives."""
    wide = [t.double().requires_grad_() for t in tensors]
    out = function(*wide)
    return out.detach(), torch.autograd.grad(out, wide, draw(*out.shape, seed=99).double())


def apart(ours, theirs):
    scale = theirs.abs().max().item()
    return (ours.double() - theirs.double()).abs().max().item() / (scale or 1.0)


def kernel(name):
    """The kernel itself, without the trial."""
    return lambda *inputs: dispatch._launch(name, inputs[0].device, inputs)


def norm(x, w):
    return w * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


# Rows and widths here are no multiples of a tile: less than one, one and some, several.
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [
        (1, 8, WIDE),
        (7, 24, NARROW),
        (7, 130, HALF),
        (5, 130, WIDE),
        (2, 5000, WIDE),
        (2, 5000, NARROW),
        (131, 6, WIDE),
    ],
)
def test_norm(rows, width, dtype):
    x, w = draw(rows, width, dtype=dtype), draw(width, seed=1, dtype=dtype)
    grad, onto = (draw(rows, width, seed=s).to(dtype) for s in (99, 3))
    out, (dx, dw) = exact(norm, x, w)
    close = FORMATS[dtype]
    n, rstd = kernel("normed")(x, w, EPS)
    assert n.dtype == dtype
    assert rstd.shape == (rows, 1)
    assert apart(n, out) < close
    assert torch.equal(kernel("norm_again")(x, w, rstd), n)
    for added in (None, onto):
        ours = grad.clone()
        got, of_w = kernel("norm_gradients")(ours, x, w, rstd, added, True)
        assert got.data_ptr() == ours.data_ptr()
        assert apart(got, dx if added is None else dx + onto.double()) < 2 * close
        assert apart(of_w, dw) < 2 * close
    assert kernel("norm_gradients")(grad.clone(), x, w, rstd, None, False)[1] is None


def test_norm_of_rows_with_gaps_and_of_columns_apart():
    wide, w = draw(6, 40), draw(20, seed=1)
    for x in (wide[:, :20], wide[:, ::2], draw(20, 6).t()):
        n, rstd = kernel("normed")(x, w, EPS)
        assert apart(n, norm(x.double(), w.double())) < 2e-6
        got, _ = kernel("norm_gradients")(draw(6, 20, seed=99), x, w, rstd, None, False)
        assert apart(got, exact(norm, x, w)[1][0]) < 4e-6


@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 2), (7, 3, 10), (5, 17, 64)])
def test_rotary(tokens, heads, width, dtype):
    x = draw(tokens, heads, width, dtype=dtype)
    angles = draw(tokens, 1, width // 2, seed=1).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def turn(x):
        x1, x2 = x.chunk(2, -1)
        c, s = cos.double(), sin.double()
        return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s], -1)

    out, (dx,) = exact(turn, x)
    assert apart(kernel("turned")(x, cos, sin, 1.0), out) < FORMATS[dtype]
    grad = draw(tokens, heads, width, seed=99).to(dtype)
    assert apart(kernel("turned")(grad, cos, sin, -1.0), dx) < FORMATS[dtype]
    # Heads of a wider tensor, as a joint projection gives them, and transposed ones.
    shared = torch.cat([x, x], dim=1)[:, heads:]
    assert torch.equal(kernel("turned")(shared, cos, sin, 1.0), kernel("turned")(x, cos, sin, 1.0))
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(kernel("turned")(turned, cos, sin, 1.0), kernel("turned")(x, cos, sin, 1.0))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, of exp
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (33, 100), (3, 1500)])
def test_gated_mlp(rows, width, dtype):
    g, u = draw(rows, width, dtype=dtype) * 4, draw(rows, width, seed=1, dtype=dtype)
    out, (dg, du) = exact(lambda g, u: F.silu(g) * u, g, u)
    close = FORMATS[dtype]
    assert apart(kernel("gated")(g, u), out) < close
    grad = draw(rows, width, seed=99).to(dtype)
    act, of_g, of_u = kernel("gated_gradients")(grad, g, u)
    assert of_u.data_ptr() == grad.data_ptr()
    for got, wanted in ((act, out), (of_g, dg), (of_u, du)):
        assert apart(got, wanted) < 2 * close
    far = torch.tensor([[-200.0, 200.0, 0.0]]).to(dtype)  # exp overflows neither way
    assert kernel("gated")(far, torch.ones_like(far)).isfinite().all()


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 3), (5, 100), (3, 5003)])
def test_cross_entropy(rows, vocabulary, dtype):
    logits = draw(rows, vocabulary, dtype=dtype) * 5
    labels = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(0))
    wide = logits.double().requires_grad_()
    loss = F.cross_entropy(wide, labels, reduction="sum")
    loss.backward()
    nats, none = kernel("nll_and_slope")(logits, labels, None)
    assert none is None
    assert nats.item() == pytest.approx(loss.item(), rel=1e-5)
    slope = torch.empty(rows, vocabulary)
    kernel("nll_and_slope")(logits, labels, slope)
    assert apart(slope, wide.grad) < 1e-5
    kernel("nll_and_slope")(logits, labels, logits)  # in its place
    assert apart(logits, wide.grad) < FORMATS[dtype]


@pytest.mark.parametrize("lead", [5.0, 17.0, 40.0, 80.0])
def test_a_sure_token_keeps_its_loss_and_gradient(lead):
    logits = torch.zeros(1, 30)
    logits[0, 7] = lead
    wide = logits.double().requires_grad_()
    F.cross_entropy(wide, torch.tensor([7]), reduction="sum").backward()
    slope = torch.empty_like(logits)
    nats, _ = kernel("nll_and_slope")(logits, torch.tensor([7]), slope)
    others = 29 * torch.exp(torch.tensor(-lead, dtype=torch.float64))
    assert nats.item() == pytest.approx(torch.log1p(others).item(), rel=1e-5)
    assert slope[0, 7].item() == pytest.approx(-(others / (1 + others)).item(), rel=1e-5)
    assert slope.double().sum().abs() < 1e-6 * slope[0, 7].abs()


@pytest.mark.parametrize("way", ["kernel", "plain"])
def test_a_row_without_a_label_counts_for_nothing(way, monkeypatch):
    if way == "plain":
        monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    logits, labels = draw(4, 50), torch.tensor([3, -1, 7, -1])
    slope = torch.full_like(logits, 9.0)
    nats = head._nll_and_slope(logits, labels, slope)
    kept = labels >= 0
    assert nats.item() == pytest.approx(
        F.cross_entropy(logits[kept].double(), labels[kept], reduction="sum").item(), rel=1e-6
    )
    assert torch.equal(slope[~kept], torch.zeros(2, 50))
    assert slope[kept].abs().min() > 0


@pytest.mark.parametrize(
    ("rows", "width", "rank", "dtype"),
    [
        (1, 8, 1, WIDE),
        (5, 24, 3, NARROW),
        (33, 100, 24, WIDE),
        (33, 100, 8, HALF),
        (70, 130, 5, NARROW),
        (70, 66, 130, WIDE),
        (3, 66, 130, NARROW),
    ],
)
def test_products_with_a_rank(rows, width, rank, dtype):
    x, h = draw(rows, width, dtype=dtype), draw(rows, rank, seed=1, dtype=dtype)
    A, B = draw(rank, width, seed=2) / rank, draw(width, rank, seed=3) / rank
    close, s = 3 * FORMATS[dtype], 0.7
    for matrix in (A, B.t()):
        wanted = s * x.double() @ matrix.double().t()
        assert apart(kernel("project")(x, matrix, s), wanted) < close
        wanted = s * h.double() @ matrix.double()
        assert apart(kernel("expand")(h, matrix, s, None), wanted) < close
        assert apart(kernel("expand")(h, matrix, s, x), wanted + x.double()) < close
    wanted = s * h.double().t() @ x.double()
    for turn in (False, True):
        got = kernel("outer")(h, x, s, turn)
        assert got.dtype == torch.float32
        assert apart(got, wanted.t() if turn else wanted) < 1e-5
    # The columns of one pair among several, and rows with gaps between them.
    both = torch.cat([h, h], dim=1)[:, rank:]
    assert torch.equal(kernel("expand")(both, A, s, None), kernel("expand")(h, A, s, None))
    assert torch.equal(kernel("outer")(both, x, s, False), kernel("outer")(h, x, s, False))


def test_sums_over_many_rows_are_taken_in_parts():
    h, x = draw(2100, 5), draw(2100, 9, seed=1)
    assert apart(kernel("outer")(h, x, 1.0, False), h.double().t() @ x.double()) < 1e-5


def linear(out, into, seed, rank, dtype, bias=False):
    pair = LowRank(draw(rank, into, seed=seed + 1) / 3, draw(out, rank, seed=seed + 2) / 3, 0.5)
    of = draw(out, seed=seed + 3, dtype=dtype) if bias else None
    return Linear(draw(out, into, seed=seed, dtype=dtype) / 5, of, (pair,))


def results(dtype, wide=False):
    """A block's parts and the head, forward and backward: all outputs and gradients."""
    rows, width, inner, words = 9, 40, 72, 90
    q, k, v = (
        linear(out, width, 10 * i, 3 + i, dtype, i == 1) for i, out in enumerate((40, 24, 24))
    )
    gate, up = (linear(inner, width, 100 + 10 * i, 4, dtype) for i in range(2))
    down, o = linear(width, inner, 200, 5, dtype), linear(width, 40, 300, 2, dtype)
    x, norm_w = draw(rows, width, seed=400, dtype=dtype), draw(width, seed=401, dtype=dtype)
    vocabulary, labels = draw(words, width, seed=402, dtype=dtype), torch.arange(rows) % words
    everything = [q, k, v, o, gate, up, down]
    if wide:
        everything = [
            replace(
                each,
                weight=each.weight.double(),
                bias=None if each.bias is None else each.bias.double(),
                pairs=tuple(replace(p, A=p.A.double(), B=p.B.double()) for p in each.pairs),
            )
            for each in everything
        ]
        x, norm_w, vocabulary = x.double(), norm_w.double(), vocabulary.double()
    q, k, v, o, gate, up, down = everything
    trained = [x, norm_w, *(t for each in everything for p in each.pairs for t in (p.A, p.B))]
    for tensor in trained:
        tensor.requires_grad_()
    angles = draw(rows, 4, seed=403).double().repeat(1, 2)
    cos, sin = (f(angles).to(x.dtype) for f in (torch.cos, torch.sin))
    qs, ks, vs = block.normed_group(x, norm_w, EPS, [q, k, v])
    turned = rotary.rotate(qs.view(rows, 5, 8), cos, sin).flatten(1)
    mixed = turned + torch.cat([ks, vs], 1)[:, :40]
    y = block.gated_mlp(block.residual_linear(x, mixed, o), norm_w, EPS, gate, up, down)
    loss = head.chunked_head_loss(y, vocabulary, None, labels)
    return [qs, ks, vs, y, loss, *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("dtype", [WIDE, NARROW], ids=["float32", "bfloat16"])
def test_the_block_and_the_head_equal_the_plain_path(dtype, monkeypatch):
    first = results(dtype)
    assert {key[0] for key in dispatch._right} == set(dispatch._HOMES)  # every kernel was tried
    ours = results(dtype)  # now without the plain twin beside it
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    plain = results(dtype)
    close = {WIDE: 2e-5, NARROW: 0.08}[
        dtype
    ]  # the interpreter cuts bfloat16 off, and rounds it not
    for one, two, other in zip(first, ours, plain, strict=True):
        assert one.dtype == two.dtype == other.dtype
        assert apart(one, other) < close
        assert apart(two, other) < close
    if dtype == WIDE:
        for two, right in zip(ours, results(dtype, wide=True), strict=True):
            assert apart(two, right) < close


def test_each_kernel_is_no_further_from_the_truth_than_its_plain_twin(monkeypatch):
    seen = []

    def both(name, known, plain, inputs):
        def given(change):
            return [change(x) if torch.is_tensor(x) else x for x in inputs]

        right = plain(*given(lambda x: x.double() if x.is_floating_point() else x.clone()))
        theirs = plain(*given(torch.clone))
        ours = dispatch._launch(name, inputs[0].device, given(torch.clone))
        for answers in zip(
            *((x,) if torch.is_tensor(x) else x for x in (ours, theirs, right)), strict=True
        ):
            if answers[0] is not None:
                one, other, exactly = (x.double() for x in answers)
                seen.append(
                    (name, (one - exactly).norm(), (other - exactly).norm(), exactly.norm())
                )
        return plain(*inputs)

    monkeypatch.setattr(dispatch, "_tried", both)
    results(HALF)
    assert {name for name, *_ in seen} == set(dispatch._HOMES)
    for name, ours, theirs, size in seen:
        assert ours <= 1.05 * theirs + 1e-6 * size, name


def test_a_kernel_that_is_wrong_is_left_with_one_line(monkeypatch, caplog):
    x, A = draw(5, 24), draw(3, 24, seed=1)
    launched = dispatch._launch

    def wrong(name, device, inputs):
        answer = launched(name, device, inputs)
        return answer * 1.01 if name == "project" else answer

    monkeypatch.setattr(dispatch, "_launch", wrong)
    with caplog.at_level(logging.WARNING, "lorakit.kernels"):
        for _ in range(3):
            assert torch.equal(pairs.project(x, A), x @ A.t())
    assert list(dispatch.left) == ["project"]
    assert len(caplog.records) == 1
    assert "'project' is not used" in caplog.text
    dispatch.left.clear()


def test_a_kernel_that_fails_is_left_with_one_line(monkeypatch, caplog):
    def fails(name, device, inputs):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(dispatch, "_launch", fails)
    g, u = draw(5, 24), draw(5, 24, seed=1)
    with caplog.at_level(logging.WARNING, "lorakit.kernels"):
        for _ in range(2):
            assert torch.equal(dispatch.run("gated", block._gated, g, u), F.silu(g) * u)
    assert [r.getMessage() for r in caplog.records] == [
        "the GPU kernel 'gated' is not used, torch's operations are: RuntimeError: Failed to find C compiler"
    ]
    dispatch.left.clear()


def test_what_is_not_finite_decides_nothing():
    g = torch.full((2, 8), torch.inf)
    dispatch.run("gated", block._gated, g, g)
    assert not dispatch._right


def test_who_asks_for_plain_gets_it(monkeypatch):
    x = draw(3, 8)
    assert dispatch.suits(x)
    assert not dispatch.suits(x.double())
    assert not dispatch.suits(x[:0])
    monkeypatch.setenv("LORAKIT_KERNELS", "plain")
    assert not dispatch.suits(x)
    monkeypatch.delenv("LORAKIT_KERNELS")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not dispatch.suits(x)


def test_a_model_trains_by_them():
    torch.manual_seed(0)
    model = attach(tiny("llama", num_hidden_layers=1), LoraSpec(rank=3), seed=0)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.1)
    batch = Batch(
        torch.arange(5, 17),
        torch.cat([torch.arange(5), torch.arange(7)]),
        torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1.0]),
        (5, 7),
        (0, 1),
    )
    pairs_of = [p for p in model.parameters() if p.requires_grad]
    ours = CausalLoss(model)
    assert ours.runnable.fused_blocks
    loss, _ = ours(batch)
    assert {key[0] for key in dispatch._right} == set(dispatch._HOMES)
    # Each row alone through the model's own code and the formula.
    nats = 0.0
    for ids, weight in zip(batch.ids_T.split((5, 7)), batch.weight_T.split((5, 7)), strict=True):
        log_p = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        nats = nats - (log_p.gather(1, ids[1:, None])[:, 0] * weight[1:]).sum()
    assert loss.item() == pytest.approx(nats.item(), rel=1e-5)
    for one, other in zip(
        torch.autograd.grad(loss, pairs_of), torch.autograd.grad(nats, pairs_of), strict=True
    ):
        assert apart(one, other) < 1e-4
