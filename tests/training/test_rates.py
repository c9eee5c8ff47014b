"""Elements that stay as they began, and LoRA+: AdamW is torch's own on what is trained, at each tensor's rate."""

import pytest
import torch
from torch import nn

from lorakit.errors import ConfigError
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import TrainSpec
from lorakit.training.optimizer import FlatAdamW
from lorakit.training.rates import Rates, rates_of

STEPS, CLIP = 6, 0.5


def model_of(init, dtype=torch.float32, **spec):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).to(dtype)
    return attach(base, LoraSpec(rank=2, targets=("0", "1"), init=init, **spec))


def inputs(step, dtype=torch.float32):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(step)).to(dtype)


def ours(init, spec, dtype=torch.float32, rates=None):
    """A and B after some steps of lorakit's optimizer, with the copies of their beginning."""
    model = model_of(init, dtype)
    layers = list(lora_layers(model).values())
    given = rates_of(layers, spec) if rates is None else rates
    optimizer = FlatAdamW((p for p in model.parameters() if p.requires_grad), spec, given)
    norms = []
    for step in range(STEPS):
        model(inputs(step, dtype)).square().sum().backward()
        norms.append(optimizer.step(0.01, divide_by=2, clip=CLIP))
    return layers, norms, optimizer


def oracle(init, spec, dtype=torch.float32):
    """The same by torch.optim.AdamW on A and B alone, the beginning subtracted from the weight."""
    model = model_of(init, dtype)
    weights, pairs = [], []
    for layer in lora_layers(model).values():
        r, W = layer.target.trained_rank, layer.base.weight.detach()
        A, B = layer.A.detach()[:r].clone(), layer.B.detach()[:, :r].clone()
        weights.append((W - layer.scale * B @ A, layer.base.bias.detach(), layer.scale))
        pairs.append((A.requires_grad_(), B.requires_grad_()))
    As, Bs = zip(*pairs, strict=True)
    common = {"betas": (spec.beta1, spec.beta2), "weight_decay": spec.weight_decay}
    optimizer = torch.optim.AdamW(
        [{"params": As, "lr": 0.01}, {"params": Bs, "lr": 0.01 * spec.lora_plus}], **common
    )
    norms = []
    for step in range(STEPS):
        x = inputs(step, dtype)
        for (W, bias, s), (A, B) in zip(weights, pairs, strict=True):
            x = x @ W.T + s * x @ A.T @ B.T + bias
        optimizer.zero_grad()
        (x.square().sum() / 2).backward()
        norms.append(float(nn.utils.clip_grad_norm_([*As, *Bs], CLIP)))
        optimizer.step()
    return pairs, norms


@pytest.mark.parametrize("lora_plus", [1.0, 8.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("init", ["kaiming", "pissa", "olora"])
def test_what_is_trained_moves_as_by_torchs_adamw_and_the_rest_stays(init, decay, lora_plus):
    spec = TrainSpec(weight_decay=decay, lora_plus=lora_plus)
    layers, norms, _ = ours(init, spec, torch.float64)
    pairs, expected = oracle(init, spec, torch.float64)
    assert norms == pytest.approx(expected, rel=1e-9)
    begun = lora_layers(model_of(init, torch.float64)).values()
    for layer, before, (A, B) in zip(layers, begun, pairs, strict=True):
        r = layer.target.trained_rank
        assert torch.allclose(layer.A[:r], A, rtol=1e-9, atol=1e-12)
        assert torch.allclose(layer.B[:, :r], B, rtol=1e-9, atol=1e-12)
        assert torch.equal(layer.A[r:], before.A[r:])
        assert torch.equal(layer.B[:, r:], before.B[:, r:])
        assert not torch.equal(layer.B[:, :r], before.B[:, :r])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_frozen_tensor_stays_and_the_other_moves(decay):
    layers, _, _ = ours("mica", TrainSpec(weight_decay=decay))
    for layer, before in zip(layers, lora_layers(model_of("mica")).values(), strict=True):
        assert torch.equal(layer.B, before.B)
        assert layer.A.any()


def test_without_either_nothing_is_different():
    plain, first, _ = ours("kaiming", TrainSpec(weight_decay=0.1), rates=Rates())
    again, second, _ = ours("kaiming", TrainSpec(weight_decay=0.1))
    assert first == second
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
    layers = lora_layers(model_of("kaiming")).values()
    assert rates_of(layers, TrainSpec()) == Rates()


def test_sixteen_bits_with_a_master_copy_take_the_same_rates():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 3).bfloat16()) for _ in range(3)]
    trained = {parameters[0]: torch.arange(15).view(5, 3) % 2 == 0}
    rates, spec = Rates({parameters[1]: 8.0}, trained), TrainSpec(weight_decay=0.1)
    masters = [nn.Parameter(p.detach().float().clone()) for p in parameters]
    optimizer = FlatAdamW(parameters, spec, rates)
    oracle = torch.optim.AdamW(
        [
            {"params": [masters[0], masters[2]], "lr": 0.01},
            {"params": [masters[1]], "lr": 0.08},
        ],
        weight_decay=0.1,
    )
    start = masters[0].detach().clone()
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.grad.copy_(torch.randn(5, 3, generator=g).bfloat16())
            master.grad = parameter.grad.float().clone()
        optimizer.step(0.01, divide_by=1, clip=0)
        oracle.step()
    mask = trained[parameters[0]]
    moved = [optimizer.master_of(p) for p in parameters]
    assert torch.equal(moved[0][~mask], start[~mask])
    assert torch.allclose(moved[0][mask], masters[0][mask], atol=1e-6)
    assert torch.allclose(moved[1], masters[1], atol=1e-6)
    assert torch.allclose(moved[2], masters[2], atol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1001.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="lora_plus must lie in"):
        TrainSpec(lora_plus=ratio)


def test_an_embeddings_b_has_the_steps_rate():
    model = attach(nn.Sequential(nn.Embedding(9, 4)), LoraSpec(rank=2, targets=("0",)))
    assert not rates_of(lora_layers(model).values(), TrainSpec(lora_plus=8.0)).factors
