"""Fused blocks against the model's own code: losses, every gradient, and who qualifies.

transformers computes its norms in float32 whatever the model, so the two agree to a few float32
roundings; the operations themselves are held in float64 in tests/kernels/test_block.py.
"""

import pytest
import torch
from torch import nn

from families import FAMILIES, tiny
from lorakit.data.batches import micro_batches
from lorakit.data.table import Encoded
from lorakit.execution.runnable import Runnable
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.training import CausalLoss

FUSED = {"llama", "qwen2", "qwen3", "mistral"}


def adapted(family, dtype=torch.float64, spec=None, **changes):
    model = tiny(family, **changes).to(dtype)
    attach(model, spec or LoraSpec(rank=3))
    generator = torch.Generator().manual_seed(5)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 5)
    return model.train()


def batch(lengths=(4, 17, 9)):
    generator = torch.Generator().manual_seed(3)
    rows = []
    for n in lengths:
        ids = torch.randint(5, 200, (n,), generator=generator).numpy().astype("int32")
        weight = (torch.arange(n) >= n // 2).numpy().astype("uint8")
        rows.append(Encoded(ids=ids, weight=weight, origin=f"row {n}"))
    (only,) = micro_batches(rows, range(len(rows)), 1000)
    return only


def gradients(model, fused, recompute=False):
    model.zero_grad()
    runnable = Runnable(model, fused=fused)
    assert bool(runnable.fused_blocks) == fused
    nll, _ = CausalLoss(runnable, recompute=recompute)(batch(), training=True)
    nll.backward()
    return nll.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(fast, slow):
    assert fast.keys() == slow.keys()
    for name, grad in slow.items():
        error = (fast[name] - grad).abs().max().item()
        assert error <= 2e-5 * grad.abs().max().item(), name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_who_qualifies_and_the_model_comes_back(family):
    model = adapted(family, torch.float32)
    before = dict(model.named_modules())
    assert len(Runnable(model).fused_blocks) == (2 if family in FUSED else 0)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", sorted(FUSED))
def test_loss_and_every_gradient_are_those_of_the_models_own_code(family, recompute):
    model = adapted(family)
    slow_nll, slow = gradients(model, fused=False)
    fast_nll, fast = gradients(model, fused=True, recompute=recompute)
    assert fast_nll == pytest.approx(slow_nll, rel=1e-6)
    assert slow
    same(fast, slow)


def test_full_fine_tuning_runs_through_the_same_blocks():
    model = tiny("llama").double().requires_grad_(True).train()
    _, slow = gradients(model, fused=False)
    _, fast = gradients(model, fused=True)
    assert slow.keys() == {name for name, _ in model.named_parameters()}
    same(fast, slow)


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(rank=3, targets=("q_proj", "v_proj")),
        LoraSpec(rank=3, targets=("down_proj",)),
        LoraSpec(rank=3, rank_pattern={"k_proj": 1, "up_proj": 5}, alpha_pattern={"q_proj": 2.0}),
    ],
    ids=["q and v", "down", "patterns"],
)
def test_any_choice_of_targets(spec):
    model = adapted("qwen2", spec=spec)
    slow_nll, slow = gradients(model, fused=False)
    fast_nll, fast = gradients(model, fused=True)
    assert fast_nll == pytest.approx(slow_nll, rel=1e-6)
    same(fast, slow)


@pytest.mark.parametrize(
    ("changes", "spec"),
    [
        ({"hidden_act": "gelu"}, LoraSpec(rank=3)),
        ({"attention_dropout": 0.1}, LoraSpec(rank=3)),
        ({}, LoraSpec(rank=3, dropout=0.1)),
    ],
    ids=["another activation", "attention dropout", "dropout of the pairs"],
)
def test_what_the_formulas_do_not_cover_keeps_its_own_code(changes, spec):
    model = adapted("llama", torch.float32, spec, **changes)
    assert not Runnable(model).fused_blocks


def test_a_linear_of_another_kind_keeps_its_block_and_no_other():
    class Odd(nn.Linear):
        pass

    model = adapted("llama", torch.float32, LoraSpec(rank=3, targets=("q_proj",)))
    base = model.model.layers[1].mlp.up_proj
    odd = Odd(base.in_features, base.out_features, bias=False)
    odd.weight = base.weight
    model.model.layers[1].mlp.up_proj = odd
    assert Runnable(model).fused_blocks == ("model.layers.0",)
    slow_nll, slow = gradients(model, fused=False)
    fast_nll, fast = gradients(model, fused=True)
    assert fast_nll == pytest.approx(slow_nll, rel=1e-6)
    same(fast, slow)
