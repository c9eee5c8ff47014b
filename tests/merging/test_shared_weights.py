"""Zamba ties the weights of one block that stands in several layers: a pair at each, untied by merging."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lorakit
from architectures import tiny_folder
from lorakit.cli.show import left_out
from lorakit.errors import TargetError
from lorakit.lora import LoraSpec, attach, lora_layers, plan
from lorakit.merging import merged_model
from lorakit.merging.ties import require_tied_by_config, tied_groups
from lorakit.models.load import load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
IDS = torch.randint(5, 260, (1, 19), generator=torch.Generator().manual_seed(0))
SHARED = {
    "zamba": "shared_transf.self_attn.q_proj",
    "zamba2": "shared_transformer.self_attn.q_proj",
}


def adapted(base: Path, *targets: str) -> Any:
    model, _ = load_model(str(base), dtype="float32")
    attach(model, LoraSpec(rank=2, targets=targets or ("all-linear",)))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 4)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    # The recurrences of these weights make a few 1e-4 of rounding; one pair too many makes .9.
    assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def tied_folder(family: str, folder: Path) -> Path:
    base = tiny_folder(family, folder)
    config = json.loads((base / "config.json").read_text())
    assert config.get("tie_word_embeddings", True)
    return base


@pytest.mark.parametrize("family", SHARED)
def test_each_place_has_a_pair_as_in_peft_and_a_weight_once_merged(family, tmp_path):
    base = tied_folder(family, tmp_path / "base")
    model = adapted(base)
    q_proj = SHARED[family]
    blocks = [model.get_submodule(f"model.layers.{number}.{q_proj}") for number in (1, 3)]
    assert blocks[0].base.weight is blocks[1].base.weight
    assert not torch.equal(blocks[0].B, blocks[1].B)
    right = logits(model)
    lorakit.save_adapter(model, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    W = plain.get_parameter(f"model.layers.1.{q_proj}.weight").detach().clone()
    close(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter")), right)

    certificate = lorakit.merge(tmp_path / "adapter", tmp_path / "merged", model=str(base))
    assert any("keeps one for each module" in note for note in certificate.notes)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    close(logits(merged), right)
    for number, block in zip((1, 3), blocks, strict=True):
        weight = merged.get_parameter(f"model.layers.{number}.{q_proj}.weight")
        torch.testing.assert_close(weight, W + block.scale * block.B @ block.A)
    # Nothing is left to fresh numbers: what has no pair is the base's.
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted_names = {f"{path}.weight" for path in lora_layers(model)}
    for name, parameter in again.named_parameters(remove_duplicate=False):
        if name not in adapted_names:
            assert torch.equal(merged.get_parameter(name), parameter), name

    in_memory = merged_model(model)
    close(logits(in_memory), right)
    in_memory.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    close(logits(saved), right)
    assert logits(model).equal(right)  # the adapted model is as it was


def test_a_pair_on_the_head_leaves_the_shared_block_as_it_was(tmp_path):
    base = tied_folder("zamba", tmp_path / "base")
    model = adapted(base, "lm_head")
    right = logits(model)
    lorakit.save_adapter(model, tmp_path / "adapter")
    lorakit.merge(tmp_path / "adapter", tmp_path / "merged", model=str(base))
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), right)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert not tensors["lm_head.weight"].equal(tensors["model.embed_tokens.weight"])
    for end in ("self_attn.q_proj.weight", "input_layernorm.weight"):
        first, other = (tensors[f"model.layers.{n}.shared_transf.{end}"] for n in (1, 3))
        assert first.equal(other)


def test_a_pair_on_one_place_alone(tmp_path):
    base = tied_folder("zamba", tmp_path / "base")
    model = adapted(base, "layers.3.shared_transf.self_attn.q_proj", "layers.0.mamba.in_proj")
    right = logits(model)
    lorakit.save_adapter(model, tmp_path / "adapter")
    lorakit.merge(tmp_path / "adapter", tmp_path / "merged", model=str(base), certify="logits")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), right)


def test_a_tie_that_the_configuration_does_not_name_is_refused(tmp_path):
    model, _ = load_model(str(tiny_folder("llama", tmp_path / "base")), dtype="float32")
    model.config.tie_word_embeddings = True
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    groups = tied_groups(plan(model, LoraSpec()).targets)
    assert len(groups) == 2
    with pytest.raises(TargetError, match=r"up_proj shares.*does not name this tie"):
        require_tied_by_config(model, groups)
    model.config.tie_word_embeddings = False
    with pytest.raises(TargetError, match=r"tie_word_embeddings is off"):
        require_tied_by_config(model, groups)


def test_what_is_shared_is_said_once(tmp_path):
    model, _ = load_model(str(tied_folder("zamba", tmp_path / "base")), dtype="float32")
    shared = [line for line in left_out(plan(model, LoraSpec())) if "share" in line]
    assert len(shared) == 1
    assert "each has a pair of its own" in shared[0]
    (head,) = [
        line
        for line in left_out(plan(model, LoraSpec(targets=("lm_head",))))
        if "shares its weight" in line
    ]
    assert "only lm_head is adapted" in head
