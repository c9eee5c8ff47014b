"""The hand-written path against the equations, in each number format."""

import pytest
import torch

from lorakit.kernels.block import linear
from lorakit.kernels.groups import Linear, LowRank
from lorakit.lora import equations

T, I, O, R = 7, 6, 5, 3  # noqa: E741


def lora_linear(x, W, b, A, B, s):
    return linear(x, Linear(W, b, (LowRank(A, B, s),)))


def pair(dtype, seed=0):
    g = torch.Generator().manual_seed(seed)

    def random(*shape, kind=dtype):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(kind)

    wide = torch.promote_types(dtype, torch.float32)
    return random(T, I), random(O, I), random(O), random(R, I, kind=wide), random(O, R, kind=wide)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_gradcheck(with_bias, transposed):
    x, W, b, A, B = pair(torch.float64)
    if transposed:
        W = W.t().contiguous().t()  # as GPT-2's Conv1D hands it over
    b = b if with_bias else None
    inputs = [t.requires_grad_() for t in (x, A, B)]
    assert torch.autograd.gradcheck(lambda x, A, B: lora_linear(x, W, b, A, B, 0.7), inputs)


def test_gradcheck_where_nobody_wants_a_gradient_of_x():
    x, W, b, A, B = pair(torch.float64)
    inputs = [A.requires_grad_(), B.requires_grad_()]
    assert torch.autograd.gradcheck(lambda A, B: lora_linear(x, W, b, A, B, 0.7), inputs)


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_a_frozen_half_gets_no_gradient(frozen):
    x, W, b, A, B = pair(torch.float32)
    moving = B if frozen == "A" else A
    moving.requires_grad_()
    lora_linear(x, W, b, A, B, 1.0).sum().backward()
    assert moving.grad is not None
    assert (A if frozen == "A" else B).grad is None


# bfloat16 keeps 8 bits: one rounding is 2^-9 relative, and sums of 6 terms of size 1 to 3 carry
# a few of them; the small factors h and g·B are rounded as well.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_the_equations(dtype, tolerance, with_bias):
    x, W, b, A, B = pair(dtype)
    b = b if with_bias else None
    s = 0.5
    grad_y = torch.randn(T, O, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = [None if t is None else t.double() for t in (x, W, b, A, B, grad_y)]
    for t in (x, A, B):
        t.requires_grad_()
    y = lora_linear(x, W, b, A, B, s)
    y.backward(grad_y)
    assert y.dtype == dtype
    assert (A.grad.dtype, B.grad.dtype) == (A.dtype, B.dtype)

    def close(ours, oracle):
        size = oracle.abs().max().item()
        torch.testing.assert_close(ours.double(), oracle, rtol=0, atol=tolerance * size)

    close(y.detach(), equations.forward(*exact[:5], s))
    x64, W64, _, A64, B64, grad64 = exact
    for ours, oracle in zip(
        (x.grad, A.grad, B.grad),
        equations.gradients(x64, W64, A64, B64, s, grad64),
        strict=True,
    ):
        close(ours, oracle)


@pytest.mark.parametrize("shape", [(I,), (2, 3, I), (1, 1, 1, I), (0, I)])
def test_any_leading_dimensions(shape):
    _, W, b, A, B = pair(torch.float32)
    x = torch.randn(shape)
    y = lora_linear(x, W, b, A, B, 2.0)
    assert y.shape == (*shape[:-1], O)
    torch.testing.assert_close(y, equations.forward(x, W, b, A, B, 2.0))


def test_a_view_that_is_not_contiguous():
    _, W, b, A, B = pair(torch.float32)
    x = torch.randn(I, 4, 3).permute(2, 1, 0)
    torch.testing.assert_close(
        lora_linear(x, W, b, A, B, 2.0), equations.forward(x, W, b, A, B, 2.0)
    )


def test_nothing_given_is_changed():
    given = pair(torch.float32)
    before = [t.clone() for t in given]
    x, W, b, A, B = given
    lora_linear(
        x.requires_grad_(), W, b, A.requires_grad_(), B.requires_grad_(), 2.0
    ).sum().backward()
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)
