"""Loading from a folder; every bad input is one clear message."""

import json
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM
from transformers.utils import logging as transformers_logging

from families import FAMILIES, saved, tiny, tokenizer
from lorakit.errors import ConfigError, ModelError
from lorakit.models import devices, load, sources
from lorakit.models.devices import torch_dtype
from lorakit.models.load import empty_model, load_model, source_of
from lorakit.models.sources import resolve
from lorakit.models.spec import ModelSpec


def edit_config(folder, **changes):
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_frozen_in_eval_mode_and_silently(family, tmp_path, capfd):
    original = tiny(family)
    original.save_pretrained(tmp_path)
    words = tokenizer()
    words.save_pretrained(tmp_path)
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    model, read = load_model(str(tmp_path), dtype="float32")
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert after == before
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    assert read.get_vocab() == words.get_vocab()
    assert source_of(model) == ModelSpec(str(tmp_path), dtype="float32")
    empty = empty_model(str(tmp_path))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_dtypes_and_devices(tmp_path):
    folder = str(saved(tmp_path))
    assert load_model(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(folder, dtype="float16", device="cpu")[0].dtype == torch.float16
    with pytest.raises(ModelError, match="device 'cuda:99' is not there"):
        load_model(folder, device="cuda:99")


@pytest.mark.parametrize("native", [True, False])
def test_auto_dtype_is_bf16_only_where_the_processor_multiplies_it(native, monkeypatch):
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: native)
    expected = torch.bfloat16 if native else torch.float32
    assert torch_dtype(ModelSpec(device="cpu")) == expected
    assert torch_dtype(ModelSpec(device="cpu", dtype="float16")) == torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype 'bf16' is unknown"),
        ({"device": "gpu"}, "device must be auto, cpu, mps"),
        ({"dtypes": "auto"}, "unknown option 'dtypes': did you mean 'dtype'"),
    ],
)
def test_options_are_strict(options, message):
    with pytest.raises(ConfigError, match=message):
        load_model("smollm2-135m", **options)
    with pytest.raises(ConfigError, match="inside the ModelSpec"):
        load_model(ModelSpec(), dtype="auto")
    with pytest.raises(ConfigError, match="model is empty"):
        ModelSpec(model=" ")


@pytest.mark.parametrize(
    ("pads", "expected"),
    [
        ({"pad_token": "<pad>"}, "<pad>"),
        ({}, "<pad>"),
        ({"pad_token": "</s>"}, "<pad>"),
        ({"pad_token": "</s>", "eos_token": "<pad>"}, "</s>"),
    ],
)
def test_the_pad_token_is_not_the_end_and_not_new(pads, expected, tmp_path):
    folder = saved(tmp_path)
    path = folder / "tokenizer_config.json"
    raw = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}
    path.write_text(json.dumps({**raw, **pads}))
    _, read = load_model(str(folder))
    assert read.pad_token == expected
    assert len(read) == len(tokenizer())


def test_where_only_the_end_token_is_left_it_pads(tmp_path):
    words = tokenizer()
    words.pad_token = None
    load._give_pad(words)
    assert words.pad_token == "<pad>"
    vocabulary = {"</s>": 0, "a": 1}
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    load._give_pad(bare)
    assert (bare.pad_token, len(bare)) == ("</s>", 2)


def test_an_unknown_name_names_what_is_near(tmp_path, monkeypatch):
    saved(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model 'smollm2-135': did you mean 'smollm2-135m'"):
        load_model("smollm2-135")
    with pytest.raises(ModelError, match=r"did you mean 'my-model'.*needs the network once"):
        load_model("my-modle")
    with pytest.raises(ModelError, match=r"did you mean '.*my-model'"):
        load_model(str(tmp_path / "my-modl"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"is a file, but not a \.gguf"):
        load_model("notes.txt")
    with pytest.raises(ModelError, match="revision 'main' has no meaning for a folder"):
        load_model("my-model", revision="main")


def test_a_hub_id_without_network_is_one_quick_message(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"'some/model' here, and the .* hub cannot be reached"):
        load_model("some/model")


def snapshot(tmp_path, commit):
    """What the hub's client leaves in its cache."""
    repository = tmp_path / "models--some--model"
    saved(repository / "snapshots" / commit)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_a_hub_id_that_was_fetched_works_offline_and_is_pinned(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = snapshot(tmp_path, commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "main", commit):
        found = resolve(ModelSpec("some/model", revision=revision))
        assert (found.folder, found.revision, found.source) == (folder, commit, "hub")


def test_a_hub_id_is_resolved_to_its_commit_before_anything_is_fetched(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    class Api:
        def model_info(self, name, *, revision, timeout):
            asked.append((name, revision))
            files = [huggingface_hub.hf_api.RepoSibling(rfilename=n) for n in held]
            info = huggingface_hub.hf_api.ModelInfo(id=name, sha="c" * 40)
            info.siblings = files
            return info

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    held = ["config.json", "model.safetensors"]
    (tmp_path / "config.json").write_text("{}")
    found = resolve(ModelSpec("some/model", revision="v1"))
    assert found.revision == "c" * 40
    assert asked[0] == ("some/model", "v1")
    assert asked[1][1] == "c" * 40
    assert "*.py" not in asked[1][2]
    held = ["config.json", "pytorch_model.bin"]
    with pytest.raises(ModelError, match=r"only a pickle \(pytorch_model.bin\)"):
        resolve(ModelSpec("some/model"))
    asked.clear()
    held = ["config.json", "model.safetensors", "adapter_config.json"]
    with pytest.raises(ModelError, match=r"^some/model holds a model and an adapter.*lorakit pull"):
        resolve(ModelSpec("some/model"))
    assert len(asked) == 1


def test_no_config_json(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"has no config.json. It holds x.gguf: name that file"):
        load_model(str(tmp_path))
    (tmp_path / "x.gguf").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It is an adapter: name its base"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match=r"config.json is not valid JSON"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="must hold a JSON object; it holds a list"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_truncated_safetensors(tmp_path, keep):
    path = saved(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(
        ModelError, match=r"model.safetensors is truncated .* fetch or copy it again"
    ):
        load_model(str(tmp_path))


def test_foreign_bytes_in_place_of_safetensors(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(b"\x80\x04pickle" * 100)
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        load_model(str(tmp_path))


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle \(pytorch_model.bin\).*convert it once"):
        load_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path):
    tiny("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer().save_pretrained(tmp_path)
    load_model(str(tmp_path))
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"names {shard.name}, which is not in"):
        load_model(str(tmp_path))


def test_missing_misshapen_and_extra_tensors(tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    path = saved(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 tensors of the model: {name}"):
        load_model(str(tmp_path))
    save_file({**tensors, name: tensors[name][:3].clone()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors .*up_proj.weight \(3, 48\) for \(64, 48\)"):
        load_model(str(tmp_path))
    save_file({**tensors, "extra.weight": torch.ones(2)}, path, {"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="lorakit.models"):
        load_model(str(tmp_path))
    assert "holds 1 tensors that this model has no place for (first: extra.weight)" in caplog.text


def test_remote_code_is_off_unless_asked_for(tmp_path):
    folder = saved(tmp_path)
    edit_config(
        folder,
        model_type="own-invention",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    (folder / "own.py").write_text("raise SystemExit('code ran')")
    with pytest.raises(ModelError, match=r"brings its own Python code .*trust_remote_code"):
        load_model(str(folder))
    with pytest.raises(ModelError, match=r"brings its own Python code"):
        empty_model(str(folder))
    # A known architecture needs none of the code that lies beside it.
    edit_config(folder, model_type="llama")
    load_model(str(folder))
    edit_config(folder, model_type="own-invention", auto_map=None)
    with pytest.raises(ModelError, match="model_type is 'own-invention', which this transformers"):
        load_model(str(folder))


def test_remote_code_runs_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = saved(tmp_path / "own_model")
    edit_config(
        folder,
        model_type="own-invention",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-invention'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    model, _ = load_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"


def test_other_kinds_of_model_are_refused(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    BertForMaskedLM(BertConfig(**small, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is BertForMaskedLM, not a causal language model"):
        load_model(str(tmp_path / "bert"))
    config = AutoConfig.for_model("llama", **small, intermediate_size=8, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classes")
    with pytest.raises(ModelError, match="is LlamaForSequenceClassification, not a causal"):
        load_model(str(tmp_path / "classes"))
    AutoConfig.for_model("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="not a causal language model"):
        empty_model(str(tmp_path / "t5"))


def test_a_folder_without_a_tokenizer(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer: tokenizer\.json is not there"):
        load_model(str(tmp_path))


def test_tokens_without_an_embedding_are_said(tmp_path, caplog):
    tiny("llama", vocab_size=261).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    load_model(str(tmp_path))
    assert "1 tokens that the model has no embedding for (first: '<|endoftext|>')" in caplog.text


def test_the_built_in_names_are_known():
    assert sources.BUILT_IN == ("smollm2-135m",)


def test_importing_a_spec_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, lorakit.models, lorakit.models.spec, lorakit.models.default;"
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_model_of_sentence_transformers_is_no_language_model(family, tmp_path):
    """Its files load as a causal model, with a head that is the embedding's or freshly drawn."""
    folder = saved(tmp_path / "embedder", family)
    edit_config(folder, architectures=[f"{family.capitalize()}Model"], tie_word_embeddings=True)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for use in (load_model, empty_model):
        with pytest.raises(
            ModelError, match=r"a model of sentence-transformers .* has no output head"
        ):
            use(str(folder))


def test_a_model_that_mlx_lm_quantized(tmp_path):
    """mlx-lm writes both keys; transformers stops at the second for want of a quant_method."""
    folder = saved(tmp_path / "model-4bit")
    packed = {"group_size": 64, "bits": 4, "mode": "affine"}
    edit_config(folder, quantization=packed, quantization_config=packed)
    for use in (load_model, empty_model):
        with pytest.raises(ModelError, match=r"quantized by mlx-lm \(4 bits\).*--dequantize"):
            use(str(folder))
