"""Files of real adapters under the names that trainers give tensors: read with peft's own logits."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from families import gemma3_config, tiny, tokenizer
from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.cli.main import run
from lorakit.config import RunConfig
from lorakit.errors import AdapterError
from lorakit.models import ModelSpec
from lorakit.run.commands.merging import run_merge
from lorakit.serving.cache import size_for
from lorakit.serving.forward import open_forward
from lorakit.serving.spec import EngineSpec

IDS = torch.arange(20)[None]
PREFIX = "base_model.model."
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]


def moving(model, **config):
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8} | config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def rename(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file({change(n): t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})


NAMES = {
    "adapter's name": lambda n: (
        n.replace(".weight", ".default.weight")
        if "lora_A" in n or "lora_B" in n
        else re.sub("(lora_embedding_.)", r"\1.default", n)
    ),
    "another adapter's name": lambda n: re.sub(r"\.(lora_\w+)", r".\1.my-task", n),
    "no prefix": lambda n: n.removeprefix(PREFIX),
    "prefix twice": lambda n: PREFIX + n,
    "DDP": lambda n: "module." + n,
    "DDP inside peft": lambda n: n.replace(PREFIX, PREFIX + "module."),
    "FSDP": lambda n: n.replace("layers.", "_fsdp_wrapped_module.layers.").replace(
        ".self_attn", "._fsdp_wrapped_module.self_attn"
    ),
    "checkpointing": lambda n: n.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "torch.compile": lambda n: n.replace(PREFIX, PREFIX + "_orig_mod."),
    "all at once": lambda n: (
        "module._orig_mod."
        + n.replace(".self_attn", "._fsdp_wrapped_module.self_attn").replace(
            ".weight", ".default.weight"
        )
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_around_pefts_own(case, tmp_path):
    theirs = moving(
        tiny("llama"),
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        use_rslora=True,
    )
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    plain = load_file(tmp_path / "adapter_model.safetensors")
    rename(tmp_path, NAMES[case])
    assert load_file(tmp_path / "adapter_model.safetensors").keys() != plain.keys()
    model = tiny("llama")
    info = load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-4)
    assert len(info.notes) == 1
    if case != "DDP inside peft":  # which only a model can tell from one that has a `module`
        assert "tensors have other names in the file than peft gives them" in info.notes[0]
        assert set(read_stored(tmp_path).pairs) == set(info.paths)


def test_two_adapters_in_one_file(tmp_path):
    moving(tiny("llama"), target_modules=["q_proj"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    both = {
        name.replace(".weight", f".{adapter}.weight"): tensor.clone()
        for adapter in ("french", "german")
        for name, tensor in tensors.items()
    }
    save_file(both, file)
    with pytest.raises(AdapterError, match=r"holds 2 adapters \(french, german\)"):
        read_adapter(tmp_path)
    save_file(tensors | {n.removeprefix(PREFIX): t.clone() for n, t in tensors.items()}, file)
    with pytest.raises(AdapterError, match="which mean the same tensor"):
        read_adapter(tmp_path)


def test_a_module_of_the_model_called_module_is_no_wrapper(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.module = nn.Linear(6, 5)

        def forward(self, x):
            return self.module(x)

    theirs = moving(Wrapped(), target_modules=["module"])
    theirs.save_pretrained(tmp_path)
    model = Wrapped()
    info = load_adapter(model, tmp_path)
    assert (info.paths, info.notes) == (("module",), ())
    x = torch.ones(2, 6)
    torch.testing.assert_close(model(x), theirs(x))


def gemma3():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(gemma3_config()).eval()


def llava():
    text = {"model_type": "llama", "vocab_size": 300, "hidden_size": 48, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 6, "initializer_range": 0.3}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=299)
    return LlavaForConditionalGeneration(config).eval()


def before_4_52(name):
    """The path that transformers 4.51 had for the same module."""
    return name.replace("model.language_model.", "language_model.model.", 1).replace(
        "model.vision_tower.", "vision_tower.", 1
    )


TEXT = "model.language_model.layers.1.self_attn.q_proj"
# target_modules as it was written before 4.52, and whether peft reads it today: a regular expression
# over whole paths meets none of today's modules.
OLD = {
    "names": ({"target_modules": ["q_proj", "down_proj"]}, None, True),
    "patterns": (
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {TEXT: 2},
            "alpha_pattern": {TEXT: 3},
        },
        None,
        False,
    ),
    "regex": (
        {"target_modules": r"model\.language_model\..*\.(q_proj|down_proj)"},
        r"language_model\.model\..*\.(q_proj|down_proj)",
        False,
    ),
}


@pytest.mark.parametrize("case", OLD)
@pytest.mark.parametrize("make", [gemma3, llava])
def test_vision_language_models_from_before_transformers_4_52(make, case, tmp_path):
    config, target_modules, pefts = OLD[case]
    theirs = moving(make(), **config)
    theirs.save_pretrained(tmp_path / "a")
    rename(tmp_path / "a", lambda n: PREFIX + before_4_52(n.removeprefix(PREFIX)))
    path = tmp_path / "a" / "adapter_config.json"
    written = json.loads(path.read_text())
    for key in ("rank_pattern", "alpha_pattern"):
        written[key] = {before_4_52(k): v for k, v in written[key].items()}
    written["target_modules"] = target_modules or written["target_modules"]
    path.write_text(json.dumps(written))
    model = make()
    info = load_adapter(model, tmp_path / "a")
    assert TEXT in info.paths
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-4)
    assert any("have moved in transformers since the adapter was trained" in n for n in info.notes)
    if pefts:
        again = PeftModel.from_pretrained(make(), tmp_path / "a").eval()
        assert torch.equal(logits(again), logits(theirs))


def test_an_old_adapter_is_merged(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    gemma3().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    theirs = moving(gemma3(), target_modules=["q_proj"])
    theirs.save_pretrained(tmp_path / "a")
    rename(tmp_path / "a", lambda n: PREFIX + before_4_52(n.removeprefix(PREFIX)))
    config = RunConfig(model=ModelSpec(model=str(tmp_path / "base")))
    made = run_merge(
        config, adapters=[(tmp_path / "a", 1.0)], out=tmp_path / "merged", dtype="base"
    )
    assert made.weights is not None
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-3)


FOREIGN = {
    "mlx-lm": ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm's name; `lorakit import` reads"),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "torchtune's own name"),
    "kohya": ("lora_unet_down_blocks_0_to_q.lora_down.weight", "kohya's name"),
    "diffusers": ("unet.down.0.to_q.processor.lora.up.weight", "diffusers' older name"),
    "NeMo": ("model.layers.0.adapter.linear_in.weight", "NeMo's name"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_trainers_names_are_refused_by_theirs(case, tmp_path):
    name, reason = FOREIGN[case]
    moving(tiny("llama"), target_modules=["q_proj"]).save_pretrained(tmp_path)
    save_file({name: torch.ones(4, 4)}, tmp_path / "adapter_model.safetensors")
    for read in (read_adapter, read_stored):
        with pytest.raises(AdapterError, match=re.escape(f"holds {name}: {reason}")):
            read(tmp_path)


@pytest.mark.parametrize("regex", [False, True])
def test_an_old_adapter_is_trained_on(regex, tmp_path, monkeypatch):
    """And so is one whose rank is above a module's smaller side; B moves in the modules of today."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    gemma3().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    targets = r"model\.language_model\..*\.(q_proj|v_proj)" if regex else ["q_proj"]
    theirs = moving(gemma3(), target_modules=targets, r=20, lora_alpha=4)
    theirs.save_pretrained(tmp_path / "old")
    rename(tmp_path / "old", lambda n: PREFIX + before_4_52(n.removeprefix(PREFIX)))
    if regex:
        path = tmp_path / "old" / "adapter_config.json"
        old = r"language_model\.model\..*\.(q_proj|v_proj)"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": old}))
    rows = [{"prompt": f"say {n}", "completion": str(n)} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["train", "--model", str(tmp_path / "base"), "--data", str(tmp_path / "rows.jsonl")]
    command += ["--from", str(tmp_path / "old"), "--max-steps", "1", "--learning-rate", "1e-9"]
    assert run([*command, "--dtype", "float32", "--out", str(tmp_path / "run")]) == 0
    model = gemma3()
    info = load_adapter(model, tmp_path / "run" / "adapter")
    assert TEXT in info.paths
    assert set(info.ranks.values()) == {20}
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-3)


def test_an_old_adapter_is_served(tmp_path):
    """In the slots of a server it is, bit for bit, the adapter under today's paths."""
    theirs = moving(gemma3(), target_modules=["q_proj", "down_proj"])
    for name in ("new", "old"):
        theirs.save_pretrained(tmp_path / name)
    rename(tmp_path / "old", lambda n: PREFIX + before_4_52(n.removeprefix(PREFIX)))
    model = gemma3().requires_grad_(False)
    bank = open_forward(model, EngineSpec(), size_for(64)).bank
    new, old = (bank.open(tmp_path / name, name) for name in ("new", "old"))
    assert new.width == old.width
    for one, other in zip(new.groups, old.groups, strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
    assert any(group.B.any() for group in new.groups)
    ranks = read_adapter(tmp_path / "old").ranks
    assert bank.width(ranks, "old") == bank.width(read_adapter(tmp_path / "new").ranks, "new")
    # Pairs beside its tower for images, which no text runs through, need no slots.
    assert any("vision_tower" in path for path in ranks)
    assert not any("vision_tower" in path for path in bank.targets)
    with pytest.raises(AdapterError, match="nothing that runs for text"):
        bank.width({path: 2 for path in ranks if "vision_tower" in path}, "tower")
