"""Attention with values of another width, sinks, chunks and biases against a float64 loop."""

import pytest
import torch

from lorakit.kernels import attention as kernels
from lorakit.kernels import attention_blocked as blocked
from lorakit.kernels.attention import attend
from lorakit.kernels.layout import layout

LENGTHS = (3, 17, 1, 16, 70)
SCALE = 0.7


def oracle(q, k, v, *, window=None, chunk=None, softcap=None, sinks=None, bias=None):
    """The formula, one sequence, one head and one query at a time."""
    out, start = q.new_zeros(*q.shape[:2], v.shape[2]), 0
    for number, n in enumerate(LENGTHS):
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            for i in range(n):
                first = 0 if window is None else max(0, i - window + 1)
                first = first if chunk is None else max(first, i - i % chunk)
                s = SCALE * k[start + first : start + i + 1, g] @ q[start + i, h]
                s = s if softcap is None else softcap * torch.tanh(s / softcap)
                s = s if bias is None else s + bias[number][h, i, first : i + 1]
                s = s if sinks is None else torch.cat((s, sinks[h : h + 1]))
                p = torch.softmax(s, 0)[: i + 1 - first]
                out[start + i, h] = p @ v[start + first : start + i + 1, g]
        start += n
    return out


def inputs(dtype=torch.float64, width=5, values=3, heads=4, key_heads=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (key_heads, width), (key_heads, values))
    return [
        torch.randn(sum(LENGTHS), *shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in shapes
    ]


def sinks_of(heads=4):
    return torch.linspace(-1, 2, heads, dtype=torch.float64)


def near(ours, theirs, variables, *, within):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    got = [ours, *torch.autograd.grad((ours.double() * weight).sum(), variables[0])]
    wanted = [theirs, *torch.autograd.grad((theirs * weight).sum(), variables[1])]
    for a, b in zip(got, wanted, strict=True):
        error = (a.detach().double() - b.detach()).norm()
        assert error < within * b.detach().norm().clamp_min(1e-3)


CASES = {
    "width": {},
    "sinks": {"sinks": True},
    "chunk": {"chunk": 5},
    "chunk and sinks": {"chunk": 7, "sinks": True},
    "window and sinks": {"window": 4, "sinks": True},
    "cap and sinks": {"softcap": 1.5, "sinks": True},
    "cap and chunk": {"softcap": 1.5, "chunk": 16},
}


@pytest.mark.parametrize("way", ["blocks kept", "blocks again", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_formula_and_so_is_its_gradient(monkeypatch, case, way):
    settings = dict(CASES[case])
    sinks = sinks_of() if settings.pop("sinks", False) else None
    monkeypatch.setattr(blocked, "BLOCK", 4)
    if way == "blocks again":
        monkeypatch.setattr(blocked, "KEEP", 0)
    q, k, v = inputs()
    exact = oracle(q, k, v, sinks=sinks, **settings)
    variables = [(q, k, v), (q, k, v)]
    if way == "torch":
        # A sink with a gradient is not for the blocks' written-out backward.
        ours_sinks = sinks_of().requires_grad_()
        exact_sinks = sinks_of().requires_grad_()
        if sinks is not None:
            exact = oracle(q, k, v, sinks=exact_sinks, **settings)
            variables = [(q, k, v, ours_sinks), (q, k, v, exact_sinks)]
            sinks = ours_sinks
    ours = attend(q, k, v, layout(LENGTHS, q.device), scale=SCALE, sinks=sinks, **settings)
    assert ours.shape == (sum(LENGTHS), 4, 3)
    near(ours, exact, variables, within=1e-12)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_what_is_added_to_scores_is_the_formula(learnt, with_sinks):
    q, k, v = inputs()
    generator = torch.Generator().manual_seed(5)
    biases = [
        torch.randn(4, n, n, generator=generator, dtype=torch.float64).requires_grad_(learnt)
        for n in LENGTHS
    ]
    where = layout(LENGTHS, q.device)
    sinks = sinks_of() if with_sinks else None
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    bias = {}
    for group in where.groups:
        squares = []
        for rows in group.rows.view(group.count, group.length):
            own = biases[starts.index(int(rows[0]))]
            square = torch.full((4, group.length, group.length), -torch.inf, dtype=own.dtype)
            seen = torch.ones(group.length, group.length).tril().bool()
            short = own.shape[1]
            padded = torch.zeros_like(square)
            padded[:, :short, :short] = own
            squares.append(torch.where(seen, padded, square))
        bias[group] = torch.stack(squares)
    ours = attend(q, k, v, where, scale=SCALE, sinks=sinks, bias=bias)
    exact = oracle(q, k, v, sinks=sinks, bias=biases)
    more = tuple(biases) if learnt else ()
    near(ours, exact, [(q, k, v, *more), (q, k, v, *more)], within=1e-12)


@pytest.mark.parametrize("case", ["width", "sinks", "chunk and sinks"])
def test_in_bf16_it_is_near_the_formula(case):
    settings = dict(CASES[case])
    sinks = sinks_of() if settings.pop("sinks", False) else None
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in inputs(width=16, values=8))
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = oracle(*exact_inputs, sinks=sinks, **settings)
    where = layout(LENGTHS, q.device, few_sizes=True)
    given = None if sinks is None else sinks.bfloat16()
    ours = attend(q, k, v, where, scale=SCALE, sinks=given, **settings)
    near(ours, exact, [(q, k, v), exact_inputs], within=0.02)


@pytest.mark.parametrize("case", ["width", "chunk and sinks"])
def test_long_sequences_too(monkeypatch, case):
    monkeypatch.setattr(kernels, "LONG", 8)
    test_it_is_the_formula_and_so_is_its_gradient(monkeypatch, case, "blocks kept")
