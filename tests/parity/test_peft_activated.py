"""Activated LoRA crosses between lorakit and peft, both ways, logit for logit and token for token."""

import json

import peft
import pytest
import torch
from transformers import DynamicCache

from families import tiny
from lorakit.adapters import load_adapter, read_adapter, save_adapter
from lorakit.errors import TargetError
from lorakit.execution.runnable import Packed, Runnable
from lorakit.lora import LoraSpec, attach, lora_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]
INVOCATION = [5, 6]
# In the middle, twice, at the end, nowhere, half of it, at the beginning.
IDS = torch.tensor(
    [
        [9, 8, 7, 5, 6, 11, 12, 13],
        [5, 6, 9, 9, 5, 6, 3, 4],
        [9, 8, 7, 3, 4, 20, 5, 6],
        [9, 8, 7, 3, 4, 20, 21, 22],
        [9, 8, 7, 3, 4, 20, 6, 5],
        [5, 6, 8, 7, 3, 4, 5, 9],
    ]
)
CASES = {
    "llama": ("llama", ["q_proj", "v_proj", "down_proj"], {}),
    "rsLoRA": ("llama", ["o_proj", "up_proj"], {"use_rslora": True}),
    "Conv1D": ("gpt2", ["c_attn", "c_fc"], {}),
}


def randomize(parameters):
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data.normal_(std=0.2, generator=generator)


def of_peft(name):
    family, targets, more = CASES[name]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        task_type="CAUSAL_LM",
        alora_invocation_tokens=INVOCATION,
        **more,
    )
    model = peft.get_peft_model(tiny(family), config).eval()
    randomize(p for key, p in model.named_parameters() if "lora_" in key)
    return model


@pytest.mark.parametrize("name", CASES)
def test_pefts_adapter_computes_the_same_here(name, tmp_path):
    theirs = of_peft(name)
    theirs.save_pretrained(tmp_path)
    assert read_adapter(tmp_path).spec.alora == (5, 6)
    ours = tiny(CASES[name][0])
    load_adapter(ours, tmp_path)
    with torch.no_grad():
        wanted = theirs(IDS).logits
        assert (wanted - tiny(CASES[name][0])(IDS).logits)[[0, 1, 2, 5]].abs().max() > 1e-2
        torch.testing.assert_close(ours(IDS).logits, wanted, rtol=0, atol=1e-5)
        rows = Packed(IDS.flatten(), torch.arange(8).repeat(6), [8] * 6)
        runnable = Runnable(ours)
        packed = runnable.logits(rows, torch.arange(48)).view(wanted.shape)
        torch.testing.assert_close(packed, wanted, rtol=0, atol=2e-5)
        padded = runnable.unpacked_logits(rows, torch.arange(48)).view(wanted.shape)
        torch.testing.assert_close(padded, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_pefts(name, tmp_path):
    theirs = of_peft(name)
    theirs.save_pretrained(tmp_path)
    ours = tiny(CASES[name][0])
    load_adapter(ours, tmp_path)
    ids = torch.cat([torch.full((6, 2), 2), IDS], dim=1)
    mask = (ids != 2).long()
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    with torch.no_grad():
        assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
        # One step after the prompt: logits, and not only the likeliest token.
        caches = DynamicCache(), DynamicCache()
        offsets = [5, 4, 2, None, None, 8]
        ours(IDS, cache=caches[0], use_cache=True)
        theirs(IDS, cache=caches[1], use_cache=True, alora_offsets=offsets)
        step = torch.tensor([[7]] * 6)
        wanted = theirs(step, cache=caches[1], alora_offsets=offsets).logits
        torch.testing.assert_close(ours(step, cache=caches[0]).logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_our_adapter_computes_the_same_in_peft(name, tmp_path):
    family, targets, more = CASES[name]
    spec = LoraSpec(rank=4, alpha=8.0, targets=tuple(targets), alora=(5, 6), rslora=bool(more))
    model = attach(tiny(family), spec).eval()
    randomize(half for layer in lora_layers(model).values() for half in (layer.A, layer.B))
    save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())[
        "alora_invocation_tokens"
    ] == [5, 6]
    theirs = peft.PeftModel.from_pretrained(tiny(family), tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


def test_an_empty_list_is_plain_lora_as_in_peft(tmp_path):
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[]
    )
    theirs = peft.get_peft_model(tiny("llama"), config).eval()
    randomize(p for key, p in theirs.named_parameters() if "lora_" in key)
    theirs.save_pretrained(tmp_path)
    ours = tiny("llama")
    assert load_adapter(ours, tmp_path).spec.variant.name == "LoRA"
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-5)


def test_a_head_that_peft_activates_is_refused_by_name(tmp_path):
    config = peft.LoraConfig(
        r=4, target_modules=["lm_head"], task_type="CAUSAL_LM", alora_invocation_tokens=[5]
    )
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(TargetError, match=r"lm_head is outside the blocks.*exclude it"):
        load_adapter(tiny("llama"), tmp_path)
