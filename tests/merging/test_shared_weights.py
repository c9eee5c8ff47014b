"""Zamba ties the weights of one block that stands in several layers: a pair at each, and no merge."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import lorakit
from architectures import tiny_folder
from lorakit.errors import AdapterError
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.models.load import load_model

IDS = torch.randint(5, 260, (1, 19), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_pair_at_each_place_as_in_peft_and_merging_is_refused_with_the_reason(tmp_path):
    base = tiny_folder("zamba", tmp_path / "base")
    model, _ = load_model(str(base))
    attach(model, LoraSpec(rank=2))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) / 4)
    blocks = [model.model.layers[number].shared_transf.self_attn.q_proj for number in (1, 3)]
    assert blocks[0].base.weight is blocks[1].base.weight
    assert not torch.equal(blocks[0].B, blocks[1].B)
    with torch.no_grad():
        right = model(input_ids=IDS, use_cache=False).logits
    lorakit.save_adapter(model, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        apart = (theirs(input_ids=IDS, use_cache=False).logits - right).abs().max()
    assert apart <= 1e-4 * right.abs().max()
    with pytest.raises(AdapterError, match=r"layers.3.*tied.*keep the adapter beside its base"):
        lorakit.merge(tmp_path / "adapter", tmp_path / "merged", model=str(base))
    assert not (tmp_path / "merged").exists()
