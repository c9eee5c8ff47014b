"""The flat optimizer against torch's own on separate tensors, and the learning-rate rules."""

import math

import pytest
import torch
from torch import nn

from lorakit.errors import ConfigError
from lorakit.training.optimizer import FlatAdamW, auto_learning_rate, learning_rate_at
from lorakit.training.spec import TrainSpec


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False)).double()


def test_equals_adamw_with_clipping_on_separate_tensors():
    ours, theirs = two_layers(), two_layers()
    spec = TrainSpec(weight_decay=0.1, beta2=0.95)
    flat = FlatAdamW(ours.parameters(), spec)
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(7):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        ours(x).square().sum().backward()
        norm = flat.step(1e-2, divide_by=4.0, clip=0.5)
        (theirs(x).square().sum() / 4).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
        adam.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_parameters_and_gradients_are_views_of_one_buffer():
    model = two_layers()
    flat = FlatAdamW(model.parameters(), TrainSpec())
    assert flat.flat.numel() == 3 * 5 + 5 + 5 * 2
    flat.flat.fill_(7.0)
    assert all(bool((p == 7.0).all()) for p in model.parameters())
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    assert float(flat.grad.abs().sum()) > 0


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = two_layers()
    flat = FlatAdamW(model.parameters(), TrainSpec())
    before = flat.flat.clone()
    flat.grad[3] = math.inf
    assert not math.isfinite(flat.step(1.0, divide_by=1.0, clip=1.0))
    assert torch.equal(flat.flat, before)


def test_state_goes_on_to_the_same_bits():
    def run(model, flat, steps):
        for step in steps:
            x = torch.randn(
                4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
            )
            model(x).square().sum().backward()
            flat.step(1e-2, divide_by=1.0, clip=1.0)

    whole = two_layers()
    run(whole, straight := FlatAdamW(whole.parameters(), TrainSpec()), range(6))
    first = two_layers()
    run(first, stopped := FlatAdamW(first.parameters(), TrainSpec()), range(3))
    state = {name: tensor.clone() for name, tensor in stopped.state().items()}
    second = two_layers()
    gone_on = FlatAdamW(second.parameters(), TrainSpec())
    gone_on.load_state(state)
    run(second, gone_on, range(3, 6))
    assert torch.equal(gone_on.flat, straight.flat)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="attach an adapter first"):
        FlatAdamW(two_layers().requires_grad_(False).parameters(), TrainSpec())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_by_its_formula(schedule):
    spec = TrainSpec(warmup=0.1, schedule=schedule)
    rates = [learning_rate_at(step, 100, 2.0, spec) for step in range(100)]
    for step in range(10):
        assert rates[step] == pytest.approx(2.0 * (step + 1) / 10)
    for step in range(10, 100):
        done = (step - 10) / 90
        factor = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": math.cos(math.pi * done / 2) ** 2,
        }[schedule]
        assert rates[step] == pytest.approx(2.0 * factor)
    assert min(rates) > 0


def test_auto_rate_follows_the_published_rule():
    assert auto_learning_rate(2000, 1000, full=True) == pytest.approx(5e-5)
    assert auto_learning_rate(2000, 1000) == pytest.approx(10 * 5e-5)
    assert auto_learning_rate(2000, 99) == pytest.approx(15 * 5e-5, rel=0.02)
    # 5e-4 · (2000/576)^0.781 by hand: ln(3.4722) = 1.24480, times 0.781 = 0.97219, e^… = 2.6437.
    assert auto_learning_rate(576, 1000) == pytest.approx(5e-4 * 2.6437, rel=0.02)
    assert auto_learning_rate(4000, 1000, family="qwen2") > auto_learning_rate(4000, 1000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"warmup": 2}, "warmup"),
        ({"clip": -1}, "clip"),
        ({"beta2": 1.0}, "beta2"),
        ({"eval_every": 0}, "eval_every"),
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TrainSpec(**wrong)
