"""The equations against plain loops and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.lora import equations

size = st.integers(1, 6)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


@given(tokens=size, inputs=size, outputs=size, rank=size)
def test_forward_is_the_sum_written_out_in_loops(tokens, inputs, outputs, rank):
    x, W, b = random(tokens, inputs), random(outputs, inputs), random(outputs)
    A, B, s = random(rank, inputs), random(outputs, rank), 0.7
    y = equations.forward(x, W, b, A, B, s)
    for t in range(tokens):
        for o in range(outputs):
            base = sum(W[o, i] * x[t, i] for i in range(inputs))
            low = sum(B[o, r] * A[r, i] * x[t, i] for r in range(rank) for i in range(inputs))
            assert y[t, o].item() == pytest.approx((base + b[o] + s * low).item())


def test_gradients_are_finite_differences():
    x, W = random(5, 4), random(3, 4)
    A, B, s, grad_y = random(2, 4), random(3, 2), 1.5, random(5, 3)

    def loss(x, A, B):
        return (equations.forward(x, W, None, A, B, s) * grad_y).sum()

    def difference(variable, rebuilt):
        slope = torch.zeros_like(variable)
        for index in range(variable.numel()):
            step = torch.zeros_like(variable).view(-1)
            step[index] = 1e-6
            step = step.view_as(variable)
            up, down = rebuilt(variable + step), rebuilt(variable - step)
            slope.view(-1)[index] = (up - down) / 2e-6
        return slope

    grad_x, grad_A, grad_B = equations.gradients(x, W, A, B, s, grad_y)
    torch.testing.assert_close(grad_x, difference(x, lambda v: loss(v, A, B)))
    torch.testing.assert_close(grad_A, difference(A, lambda v: loss(x, v, B)))
    torch.testing.assert_close(grad_B, difference(B, lambda v: loss(x, A, v)))


def test_merged_weight_computes_what_the_pair_does():
    x, W, A, B = random(5, 4), random(3, 4), random(2, 4), random(3, 2)
    merged = equations.merge(W, A, B, 2.0)
    torch.testing.assert_close(x @ merged.T, equations.forward(x, W, None, A, B, 2.0))


def test_merging_rounds_once():
    W = torch.ones(1, 1, dtype=torch.bfloat16)
    A, B = torch.full((1, 1), 2.0**-8), torch.ones(1, 1)
    # 1 + 2^-8 lies halfway between bfloat16's 1 and 1 + 2^-7 and goes to the even one; 1.5 times
    # that is nearer to the upper. Had s·B·A been rounded first, nothing here would change, so
    # the third case has a product that bfloat16 cannot hold: 2^-8 (1 + 2^-9).
    assert equations.merge(W, A, B, 1.0).item() == 1.0
    assert equations.merge(W, A, B, 1.5).item() == 1 + 2.0**-7
    assert equations.merge(W, A, B, 1.0 + 2.0**-9).item() == 1 + 2.0**-7


@pytest.mark.parametrize(
    ("alpha", "rank", "rslora", "expected"),
    [(32, 8, False, 4.0), (16, 64, False, 0.25), (16, 64, True, 2.0), (1, 2, True, 2**-0.5)],
)
def test_scale(alpha, rank, rslora, expected):
    assert equations.scale(alpha, rank, rslora=rslora) == pytest.approx(expected)


@given(st.integers(1, 10_000))
def test_kaiming_bound_is_that_of_torch(fan_in):
    # torch.nn.init.kaiming_uniform_: bound = gain · sqrt(3 / fan_in), gain = sqrt(2 / (1 + a²))
    gain = torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    assert equations.kaiming_bound(fan_in) == pytest.approx(gain * math.sqrt(3 / fan_in))
