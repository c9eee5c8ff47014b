"""Adapters that real peft saves: read with its logits, or refused with a way on that works."""

import json
import os
import re
import shlex
import warnings

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import lorakit
from families import saved, tiny, tokenizer
from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.cli.main import run
from lorakit.errors import AdapterError, TargetError

IDS = torch.arange(20)[None]
pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own, of every kind


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def moving(model, config):
    torch.manual_seed(1)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


LAYER = "model.layers.1"
# Family, and the arguments of a LoraConfig.
READ = {
    "names": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "one regex": ("llama", {"target_modules": r".*\.(q_proj|gate_proj)"}),
    "regex with layers": ("llama", {"target_modules": r"model\.layers\.1\..*_proj"}),
    "whole paths": ("llama", {"target_modules": [f"{LAYER}.mlp.up_proj", "o_proj"]}),
    "layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 0}),
    "layers and pattern": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "excluded names": (
        "llama",
        {"target_modules": "all-linear", "exclude_modules": ["down_proj", "k_proj"]},
    ),
    "excluded by regex": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\..*"},
    ),
    "rank by name": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}},
    ),
    "rank by path": (
        "llama",
        {"target_modules": ["q_proj"], "rank_pattern": {f"{LAYER}.self_attn.q_proj": 7}},
    ),
    "rank by regex": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {r"layers\.[01]\.mlp\..*": 3}},
    ),
    "anchored": (
        "llama",
        {"target_modules": ["q_proj"], "rank_pattern": {f"^{LAYER}.self_attn.q_proj": 2}},
    ),
    "alpha by regex": (
        "llama",
        {"target_modules": "all-linear", "alpha_pattern": {r"(q|k)_proj": 3, "mlp.*": 40}},
    ),
    "both, rsLoRA": (
        "llama",
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"up_proj": 16},
            "alpha_pattern": {"up_proj": 1, "q_proj": 64},
        },
    ),
    "alpha below one": ("llama", {"target_modules": ["q_proj"], "lora_alpha": 0.5}),
    "gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "not initialised": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": False}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "Conv1D, unsaid": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "GPT-NeoX": ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
    "rank above the side": ("llama", {"target_modules": ["q_proj", "k_proj"], "r": 64}),
    "rank above one side": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {"k_proj": 20}},
    ),
}


@pytest.mark.parametrize("case", READ)
def test_pefts_logits(case, tmp_path):
    family, config = READ[case]
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | config)
    theirs = moving(tiny(family), config)
    theirs.save_pretrained(tmp_path / "a")
    model = tiny(family)
    info = load_adapter(model, tmp_path / "a")
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(logits(model), logits(tiny(family)), atol=1e-2)
    assert set(read_adapter(tmp_path / "a").paths) == set(info.paths)
    # As a value, merged by hand: what merging, combining and serving go by.
    plain = tiny(family)
    with torch.no_grad():
        for path, pair in read_stored(tmp_path / "a").pairs.items():
            delta = pair.delta()
            turned = pair.kind in ("conv1d", "embedding")
            plain.get_submodule(path).weight += delta.T if turned else delta
    torch.testing.assert_close(logits(plain), logits(theirs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["rank above the side", "rank above one side"])
def test_a_rank_above_the_smaller_side_everywhere(case, tmp_path, capsys):
    """Such files exist, since peft makes them; lorakit makes none, and uses one everywhere."""
    saved(tmp_path / "base")
    family, config = READ[case]
    theirs = moving(tiny(family), LoraConfig(**{"r": 4, "lora_alpha": 8} | config))
    theirs.save_pretrained("a")
    expected = logits(theirs)
    model = tiny(family)
    (note,) = load_adapter(model, "a").notes
    assert "above its smaller side 16 (2 such modules)" in note or "side 48 (4 such" in note
    lorakit.save_adapter(model, "again")
    commands = {
        "merged": ["merge", "--model", "base", "--adapter", "a", "--out", "merged"],
        "shrunk": ["adapters", "shrink", "a", "--rank", "48", "--out", "shrunk"],
        "both": ["adapters", "combine", "a:0.5", "a:0.5", "--how", "cat", "--out", "both"],
        "safe": ["export", "a", "--to", "vllm", "--out", "safe"],
    }
    for command in commands.values():
        assert run(command) == 0, capsys.readouterr().err
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-3)
    for name in ("again", "shrunk", "both", "safe"):
        again = tiny(family)
        load_adapter(again, name)
        torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-3)
    ranks = read_adapter("shrunk").ranks
    assert all(rank <= (16 if "k_proj" in path else 48) for path, rank in ranks.items())
    code = run(["generate", "x", "--model", "base", "--adapter", "a", "--max-new-tokens", "2"])
    assert code == 0


# A configuration of peft that lorakit does not do, and what names it.
REFUSED = {
    "AdaLoRA": (
        peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=10),
        "peft_type is 'ADALORA'",
    ),
    "LoHa": (peft.LoHaConfig(target_modules=["q_proj"], r=2), "peft_type is 'LOHA'"),
    "LoKr": (peft.LoKrConfig(target_modules=["q_proj"], r=2), "peft_type is 'LOKR'"),
    "IA3": (
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        "peft_type is 'IA3'",
    ),
    "VeRA": (peft.VeraConfig(target_modules=["q_proj"], r=4), "peft_type is 'VERA'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_has_a_way_on(case, tmp_path, capsys):
    """The command in the message makes a model folder that lorakit opens, with peft's logits."""
    config, reason = REFUSED[case]
    family = "gpt2" if "c_attn" in config.target_modules else "llama"
    saved(tmp_path / "base", family)
    config.task_type = "CAUSAL_LM"
    theirs = moving(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32), config)
    theirs.save_pretrained("a")
    for read in (read_adapter, read_stored, lambda folder: load_adapter(tiny(family), folder)):
        with pytest.raises(AdapterError) as caught:
            read(tmp_path / "a")
        assert reason in str(caught.value)
    assert run(["merge", "--model", "base", "--adapter", "a", "--out", "x"]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    python, flag, code = shlex.split(str(caught.value).split("ordinary model of it: ")[1])
    assert (python, flag) == ("python", "-c")
    exec(code, {})
    merged, _ = lorakit.load_model("merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-3)


def test_patterns_that_peft_turns_around(tmp_path):
    """peft sorts the keys of the file, and then another one is the first to hit: it cannot read it."""
    config = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 5, ".*_proj": 3})
    moving(tiny("llama"), config).save_pretrained("a")
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny("llama"), "a")
    with pytest.raises(AdapterError, match=r"q_proj is \(5, 48\), but .* says that its rank is 3"):
        read_adapter("a")


def test_a_prompt_has_no_weights_to_merge(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(tiny("llama"), config).save_pretrained("a")
    with pytest.raises(AdapterError) as caught:
        read_adapter("a")
    assert str(caught.value).endswith("peft_type is 'PROMPT_TUNING'; lorakit reads 'LORA'")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_that_move_the_base(init, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=init)
    model = get_peft_model(tiny("llama"), config)
    start = tmp_path / "start"
    model.save_pretrained(start)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.eval().save_pretrained("raw")
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        read_adapter("raw")
    expected = logits(model)
    model.save_pretrained("converted", path_initial_model_for_weight_conversion=str(start))
    ours = tiny("llama")
    load_adapter(ours, "converted")
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-3)


def edit(folder, **changes):
    file = os.path.join(folder, "adapter_config.json")
    with open(file) as config:
        content = json.load(config) | changes
    with open(file, "w") as config:
        json.dump({k: v for k, v in content.items() if v != "DELETE"}, config)


# What other trainers leave in adapter_config.json of an ordinary LoRA.
TRAINERS = {
    "unsloth": {
        "auto_mapping": {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        "base_model_name_or_path": "unsloth/tinyllama-bnb-4bit",
        "target_modules": r"(?:.*?(?:language|text).*?|model)\.layers\.\d+\.self_attn\.q_proj",
    },
    "LLaMA-Factory": {
        "base_model_name_or_path": "/models/llama",
        "lora_dropout": 0.0,
        "bias": "none",
    },
    "axolotl, peft 0.3": {
        **dict.fromkeys(("alpha_pattern", "rank_pattern", "use_rslora", "use_dora"), "DELETE"),
        **dict.fromkeys(("peft_version", "revision", "exclude_modules", "corda_config"), "DELETE"),
        "enable_lora": None,
        "merge_weights": False,
    },
    "torchtune": "few",
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_configurations_of_other_trainers(trainer, tmp_path):
    theirs = moving(tiny("llama"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    theirs.save_pretrained("a")
    if TRAINERS[trainer] == "few":
        few = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(few))
    else:
        edit("a", **TRAINERS[trainer])
    model = tiny("llama")
    load_adapter(model, "a")
    assert torch.equal(logits(model), logits(theirs))


def test_a_key_of_a_newer_peft(tmp_path):
    """peft reads such an adapter without the key and warns; the message says so and that helps."""
    theirs = moving(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    theirs.save_pretrained("a")
    edit("a", made_by="trainer 7", use_newlora=None)
    with pytest.raises(AdapterError) as caught:
        read_adapter("a")
    message = str(caught.value)
    assert "the key 'made_by' ('trainer 7') is unknown" in message
    assert "remove it from the file: peft 0.21, too, reads the adapter without it" in message
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = PeftModel.from_pretrained(tiny("llama"), "a").eval()
    assert any("Unexpected keyword arguments" in str(w.message) for w in said)
    assert torch.equal(logits(again), logits(theirs))
    edit("a", **{re.search(r"the key '(\w+)'", message)[1]: "DELETE"})
    model = tiny("llama")
    load_adapter(model, "a")
    assert torch.equal(logits(model), logits(theirs))


@pytest.mark.parametrize(
    ("named", "noted"),
    [
        ("base", False),
        ("someone/Base", False),
        ("/elsewhere/base/", False),
        ("~/.cache/hub/models--someone--base/snapshots/" + "a" * 40, False),
        (None, False),
        ("someone/other", True),
        ("base-bnb-4bit", True),
    ],
)
def test_another_base_that_no_hash_speaks_of(named, noted, tmp_path, caplog):
    saved(tmp_path / "base")
    moving(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained("a")
    edit("a", base_model_name_or_path=named)
    model, _ = lorakit.load_model("base", dtype="float32")
    info = load_adapter(model, "a")
    expected = f"adapter_config.json names {named!r} as its base, and this base is 'base'"
    assert any(note.startswith(expected) for note in info.notes) == noted
    assert (expected in caplog.text) == noted
    made = lorakit.merge("a", "merged", model="base")
    assert any(f"a: {expected}" in note for note in made.notes) == noted


def with_new_tokens(*tokens):
    words = tokenizer()
    words.add_tokens(list(tokens), special_tokens=True)
    return words


def test_tokens_that_the_base_has_not_are_named(tmp_path, caplog):
    """They were put into spare rows of the embedding: the weights fit, and the texts do not."""
    saved(tmp_path / "base")
    moving(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained("a")
    tokenizer().save_pretrained("a")
    model, _ = lorakit.load_model("base", dtype="float32")
    assert not load_adapter(model, "a").notes
    with_new_tokens("<tool>", "</tool>").save_pretrained("a")
    model, _ = lorakit.load_model("base", dtype="float32")
    (note,) = load_adapter(model, "a").notes
    assert "has 2 tokens that the base's has not ('<tool>', '</tool>')" in note
    assert note in caplog.text


@pytest.mark.parametrize("whole", [None, ["embed_tokens", "lm_head"]], ids=["copies", "saved"])
def test_an_embedding_that_was_made_larger(whole, tmp_path):
    """peft keeps it in the file; the message's command gives a model with the new tokens in it."""
    saved(tmp_path / "base")
    words = with_new_tokens("<tool>", *(f"<{n}>" for n in range(60)))
    grown = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    grown.resize_token_embeddings(len(words))
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=whole)
    theirs = moving(grown, config)
    theirs.save_pretrained("a")
    words.save_pretrained("a")
    model, _ = lorakit.load_model("base", dtype="float32")
    with pytest.raises(AdapterError) as caught:
        load_adapter(model, "a")
    message = str(caught.value)
    assert "tokens were added, or the base is another" in message
    exec(shlex.split(message.split("ordinary model of it: ")[1])[2], {})
    merged, read = lorakit.load_model("merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-3)
    assert read.encode("<tool>") == words.encode("<tool>")


def test_a_model_that_has_pefts_layers_is_refused(tmp_path):
    """Among them are linear layers, the adapter's own A and B; each way out of the message is tried."""
    saved(tmp_path / "both")
    adapted = moving(tiny("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained("both")
    unsaid = AutoModelForCausalLM.from_pretrained("both", dtype=torch.float32)
    assert any("lora_A" in name for name, _ in unsaid.named_modules())
    spec = lorakit.LoraSpec(rank=2)
    for model in (unsaid, adapted):
        for use in (lorakit.plan, lorakit.attach):
            with pytest.raises(
                TargetError, match="this model has an adapter of peft attached"
            ) as e:
                use(model, spec)
    assert "lorakit.load_model(FOLDER, ignore_adapter=True)" in str(e.value)
    alone, _ = lorakit.load_model("both", dtype="float32", ignore_adapter=True)
    expected = lorakit.plan(tiny("llama"), spec)
    for model in (alone, adapted.unload()):
        assert lorakit.plan(model, spec) == expected
        assert torch.equal(logits(model), logits(tiny("llama")))
