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


class Tied(nn.Module):
    """An embedding whose weight is the head's as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.middle(self.embedding(ids))))


def loss_of(model, step):
    ids = torch.randint(0, 9, (12,), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(ids[:-1]).float(), ids[1:], reduction="sum")


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_narrow_parameters_move_by_their_master_copy(clip, monkeypatch):
    """Against a plain loop: float32 weights, rounded to bfloat16 for each forward and backward."""
    monkeypatch.setattr("lorakit.training.optimizer._PART", 7)  # several parts, the last one short
    model, spec = Tied().bfloat16(), TrainSpec(weight_decay=0.1)
    flat = FlatAdamW(model.parameters(), spec)
    plain = Tied().bfloat16()
    wide = [p.detach().float() for p in plain.parameters()]
    adam = torch.optim.AdamW(wide, lr=3e-3, betas=(0.9, 0.999), weight_decay=0.1)
    for step in range(8):
        loss_of(model, step).backward()
        norm = flat.step(3e-3, divide_by=11.0, clip=clip)
        plain.zero_grad()
        loss_of(plain, step).backward()
        for master, narrow in zip(wide, plain.parameters(), strict=True):
            master.grad = narrow.grad.float() / 11
        expected = nn.utils.clip_grad_norm_(wide, clip or math.inf)
        adam.step()
        for master, narrow in zip(wide, plain.parameters(), strict=True):
            narrow.data.copy_(master)
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(model.parameters(), wide, strict=True):
        torch.testing.assert_close(flat.master_of(ours), theirs, rtol=1e-5, atol=1e-7)


def test_steps_below_the_rounding_of_bfloat16_add_up():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    flat = FlatAdamW([weight], TrainSpec())
    for _ in range(400):  # Adam moves by the rate: 1e-5, and bfloat16 below 1 is 4e-3 apart
        flat.grad.fill_(1.0)
        flat.step(1e-5, divide_by=1.0, clip=0.0)
    assert float(flat.master[0]) == pytest.approx(1 - 400e-5, abs=1e-5)
    assert float(weight.detach()[0]) == 1 - 2**-8


def test_tied_weights_are_laid_down_once_and_take_both_gradients():
    model, apart = Tied(), Tied()
    flat = FlatAdamW(model.parameters(), TrainSpec())
    assert flat.flat.numel() == 9 * 4 + 4 * 4 + 4
    loss_of(model, 0).backward()
    apart.head.weight = nn.Parameter(apart.embedding.weight.detach().clone())
    loss_of(apart, 0).backward()
    both = apart.embedding.weight.grad + apart.head.weight.grad
    torch.testing.assert_close(model.embedding.weight.grad, both)
    flat.step(1e-2, divide_by=1.0, clip=0.0)
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()


def test_memory_of_narrow_and_wide_parameters_is_sixteen_bytes_each():
    for dtype, state in ((torch.bfloat16, 12), (torch.float32, 8)):
        flat = FlatAdamW(Tied().to(dtype).parameters(), TrainSpec())
        n = flat.flat.numel()
        assert flat.state_bytes == state * n
        assert flat.state_bytes + 2 * n * flat.flat.element_size() == 16 * n


def test_a_narrow_state_goes_on_to_the_same_bits():
    def run(model, flat, steps):
        for step in steps:
            loss_of(model, step).backward()
            flat.step(1e-3, divide_by=11.0, clip=1.0)

    whole, stopped, second = (Tied().bfloat16() for _ in range(3))
    run(whole, straight := FlatAdamW(whole.parameters(), TrainSpec()), range(6))
    run(stopped, first := FlatAdamW(stopped.parameters(), TrainSpec()), range(3))
    gone_on = FlatAdamW(second.parameters(), TrainSpec())
    gone_on.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    run(second, gone_on, range(3, 6))
    assert torch.equal(gone_on.master, straight.master)
    assert torch.equal(gone_on.flat, straight.flat)
