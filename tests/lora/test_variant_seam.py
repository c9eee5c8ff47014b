"""The seam of variants: each option finds its variant, and a layer that no kernel computes is right."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from lorakit.errors import ConfigError, TargetError
from lorakit.lora import LoraSpec, attach, lora_layers, plan, variants
from lorakit.lora.plain import PlainLora
from lorakit.lora.variant import Capability


@dataclass(frozen=True)
class OddSpec(LoraSpec):
    odd: bool = False


ODD = PlainLora("Odd", options=frozenset({"odd"}), peft_keys=frozenset({"use_odd"}))


def with_odd(monkeypatch, *capabilities):
    """Plain LoRA under another name, with these capabilities alone."""
    odd = replace(ODD, capabilities=frozenset(capabilities))
    monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS, odd))


def test_the_scale_is_the_variants():
    assert LoraSpec(alpha=6.0).variant.scale(6.0, 4) == 6.0 / 4
    assert LoraSpec(rslora=True).variant.scale(6.0, 4) == 6.0 / math.sqrt(4)


def test_every_capability_is_plain_loras():
    for spec in (LoraSpec(), LoraSpec(rslora=True)):
        # It has no factor and no position: what they would cost is not paid for.
        lacking = {Capability.FACTOR, Capability.POSITION}
        assert spec.variant.capabilities == set(Capability) - lacking


def test_options_and_keys_choose_one_variant_each():
    for choices in ("options", "peft_keys"):
        known = [getattr(variant, choices) for variant in variants.VARIANTS]
        assert len(set(known)) == len(known)


def test_options_of_two_variants_are_refused_with_what_there_is(monkeypatch):
    with_odd(monkeypatch)
    with pytest.raises(ConfigError, match="odd and rslora are on together") as caught:
        OddSpec(odd=True, rslora=True)
    wanted = (
        "LoRA, rsLoRA, DoRA, DoRA with rsLoRA's scale, activated LoRA, activated rsLoRA and Odd"
    )
    assert f"lorakit does {wanted}" in str(caught.value)


def test_without_the_kernels_every_kind_of_layer_computes_the_same(case, monkeypatch):
    plain = case.layer()
    if plain.geometry.groups > 1:
        pytest.skip("a grouped base has no place for the product")
    with_odd(monkeypatch, Capability.MERGE)
    spec = OddSpec(rank=case.rank, alpha=3.0, targets=("0",), odd=True)
    odd = lora_layers(attach(nn.Sequential(plain.base), spec).eval())["0"]
    odd.load_state_dict(plain.state_dict())
    assert not odd.by_kernels
    torch.testing.assert_close(odd(case.input()), plain(case.input()))


def test_a_base_whose_weight_cannot_be_read_is_refused(monkeypatch):
    with_odd(monkeypatch)

    class Packed(nn.Linear):
        def __init__(self):
            super().__init__(6, 5)
            self.weight = nn.Parameter(torch.ones(5, 6, dtype=torch.int8), requires_grad=False)

    model = nn.Sequential(Packed())
    attach(model, LoraSpec(rank=2, targets=("0",)))  # beside which a plain pair is computed
    with pytest.raises(TargetError, match=r"the variant Odd cannot be computed as .*unquantized"):
        attach(nn.Sequential(Packed()), OddSpec(rank=2, targets=("0",), odd=True))


def test_dropout_needs_a_low_rank_path(monkeypatch):
    with_odd(monkeypatch, Capability.KERNELS)
    with pytest.raises(ConfigError, match=r"dropout 0\.1: the variant Odd cannot drop inputs"):
        OddSpec(odd=True, dropout=0.1)
    OddSpec(odd=True)


def test_the_plan_knows_the_tensors(stack):
    targets = plan(stack, LoraSpec(rank=2, targets=("up_proj",))).targets
    assert [dict(target.tensors) for target in targets] == [{"A": (2, 8), "B": (12, 2)}] * 2
