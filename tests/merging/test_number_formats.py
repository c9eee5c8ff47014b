"""A merged folder has, tensor by tensor, the number formats of its base's files: by every way."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

import lorakit
from families import gemma3_config, tiny, tokenizer
from lorakit.config import RunConfig
from lorakit.models import ModelSpec
from lorakit.models.weights import OtherNamesError
from lorakit.run.commands.merging import run_merge

IDS = torch.tensor([[5, 9, 2, 60, 33, 7]])
pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft warns of a pair on a tied layer, which is what one test here is about.
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


@pytest.fixture(autouse=True)
def _a_processor_with_bf16_units(monkeypatch):
    """Where 'auto' holds models in bfloat16, whatever their files have."""
    monkeypatch.setattr("lorakit.models.devices.cpu_multiplies_bf16", lambda: True)


def gemma3():
    """A vision-language model, whose files have other names than its modules."""
    rotation = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(gemma3_config(rope_parameters=rotation)).eval()


def base_folder(folder, model, change=lambda name, tensor: tensor):
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def peft_adapter(folder, model, *targets):
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(targets)))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(0.0, 0.2)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def merge(base, adapter, out, **options):
    config = RunConfig(model=ModelSpec(model=str(base)))
    options = {"dtype": "base", "force": True} | options
    return run_merge(config, adapters=[(adapter, 1.0)], out=out, **options)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


MIXED = {"norm": torch.float32, "q_proj": torch.float16, "embed": torch.float16}


def mixed(name, tensor):
    return tensor.to(next((d for key, d in MIXED.items() if key in name), torch.bfloat16))


@pytest.mark.parametrize("change", [lambda _, tensor: tensor, mixed], ids=["float32", "mixed"])
@pytest.mark.parametrize("way", ["files", "memory"])
def test_gemma_3_with_its_images(way, change, tmp_path, monkeypatch):
    base = base_folder(tmp_path / "base", gemma3(), change)
    targets = "q_proj", "down_proj"
    before = load_file(base / "model.safetensors")
    held = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft_adapter(tmp_path / "adapter", held, *targets)
    if way == "memory":
        monkeypatch.setattr("lorakit.run.commands.merging.by_files", nowhere)
    certificate = merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert (certificate.weights is None) == (way == "memory")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    for name, tensor in before.items():
        moved = any(name.endswith(f"{target}.weight") for target in targets)
        assert torch.equal(after[name], tensor) != moved, name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    wide = change is not mixed
    torch.testing.assert_close(
        logits(again), logits(adapted), rtol=1e-4, atol=1e-3 if wide else 0.3
    )
    told = json.loads((tmp_path / "merged" / "config.json").read_text())
    # Files are copied with the word of the base's config.json; in memory most of them say what it is.
    assert told["dtype"] == ("float32" if wide or way == "files" else "bfloat16")
    assert told["text_config"]["rope_theta"] == 1e6
    assert told["text_config"]["rope_local_base_freq"] == 1e4
    assert told["text_config"]["rope_scaling"]["factor"] == 8.0


def nowhere(*_):
    raise OtherNamesError("the files of this model hold no tensor")


def test_a_tie_that_is_cut_in_memory(tmp_path, monkeypatch):
    """The half that the files did not hold gets the format that most of them have."""
    base = base_folder(tmp_path / "base", tiny("llama", tie_word_embeddings=True), mixed)
    held = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft_adapter(tmp_path / "adapter", held, "lm_head")
    monkeypatch.setattr("lorakit.run.commands.merging.by_files", nowhere)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert after.keys() == before.keys() | {"lm_head.weight"}
    assert after["lm_head.weight"].dtype == torch.bfloat16
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(adapted), rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("way", ["files", "memory"])
def test_a_format_that_is_asked_for(way, tmp_path, monkeypatch):
    base = base_folder(tmp_path / "base", tiny("llama"), mixed)
    peft_adapter(tmp_path / "adapter", tiny("llama"), "q_proj")
    if way == "memory":
        monkeypatch.setattr("lorakit.run.commands.merging.by_files", nowhere)
    merge(base, tmp_path / "adapter", tmp_path / "merged", dtype="float16")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("way", ["files", "memory"])
def test_in_python_and_of_several(way, tmp_path, monkeypatch):
    base = base_folder(tmp_path / "base", tiny("llama"), mixed)
    for name in ("one", "two"):
        peft_adapter(tmp_path / name, tiny("llama"), "q_proj", "up_proj")
    if way == "memory":
        monkeypatch.setattr("lorakit.run.commands.merging.by_files", nowhere)
    weights = {str(tmp_path / "one"): 0.7, str(tmp_path / "two"): -0.2}
    lorakit.merge(weights, tmp_path / "merged", model=base)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
