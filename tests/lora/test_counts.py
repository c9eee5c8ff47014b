"""Parameter counts against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorakit.lora import LoraSpec, attach, lora_layers, plan


def test_one_matrix_of_512_by_64():
    made = plan(nn.Sequential(nn.Linear(64, 512, bias=False)), LoraSpec(rank=8, targets=("0",)))
    (target,) = made.targets
    assert target.frozen == 32_768
    assert target.geometry.pair_shapes(8) == ((8, 64), (512, 8))
    assert target.trainable == made.trainable == 512 + 4_096


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M's shape without its weights."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_smollm2_on_all_linears(smollm2):
    made = plan(smollm2, LoraSpec(rank=8))
    kv = 3 * 64
    sides = [(576, 576), (576, kv), (576, kv), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    assert made.trainable == 30 * 8 * sum(i + o for i, o in sides) == 2_442_240
    assert len(made.targets) == 30 * 7
    assert made.total_parameters == 134_515_008
    assert str(made) == "210 modules, 2,442,240 trainable parameters (1.82% of 134,515,008)"
    assert next(s.reason for s in made.skipped if s.path == "lm_head").startswith("outside")


def test_the_tied_head_is_known(smollm2):
    made = plan(smollm2, LoraSpec(rank=8, targets=("lm_head",)))
    assert made.targets[0].tied_to == ("model.embed_tokens",)


side = st.integers(1, 9)


@given(inputs=side, outputs=side, rank=side)
def test_the_plan_counts_what_attaching_makes(inputs, outputs, rank):
    rank = min(rank, inputs, outputs)
    model = nn.Sequential(nn.Linear(inputs, outputs))
    made = plan(model, LoraSpec(rank=rank, targets=("0",)))
    attach(model, made)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert made.trainable == trained == rank * (inputs + outputs)
    assert made.total_parameters == inputs * outputs + outputs


def test_the_plan_counts_what_attaching_makes_of_any_kind(case):
    model = nn.Sequential(case.base)
    made = plan(model, LoraSpec(rank=case.rank, targets=("0",)))
    layer = lora_layers(attach(model, made))["0"]
    assert made.trainable == layer.A.numel() + layer.B.numel()
    assert made.targets[0].frozen == sum(p.numel() for p in case.base.parameters())
