"""A clone without its large files, half a download, a file too few: one clear error each."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import lorakit
from families import saved, tiny, tokenizer
from lorakit.adapters import load_adapter, read_adapter
from lorakit.adapters.pairs import read_stored
from lorakit.adapters.saved_template import saved_chat_template
from lorakit.cli.main import run
from lorakit.errors import AdapterError, ModelError
from lorakit.models import identify, load_model, load_outline

OID = "a" * 64
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 9000000\n"
TOLD = r"{} is a Git LFS pointer, not the file of 9\.0 MB itself: run `git lfs install`"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    tiny("llama").save_pretrained(folder, max_shard_size="60KB")
    tokenizer().save_pretrained(folder)
    return folder


def refused(folder, match, *, with_weights=True):
    uses = (load_model, load_outline, identify) if with_weights else (load_model, load_outline)
    for use in uses:
        with pytest.raises(ModelError, match=match) as caught:
            use(str(folder))
        assert "\n" not in str(caught.value)


def in_place(file):
    file.write_text(LFS)
    return TOLD.format(file.name)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
)
def test_a_pointer_of_git_lfs_in_a_model(name, model):
    refused(model, in_place(model / name), with_weights=name != "config.json")


def test_a_pointer_among_shards_and_as_their_index(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    kept = shard.read_bytes()
    refused(sharded, in_place(shard))
    shard.write_bytes(kept)
    refused(sharded, in_place(sharded / "model.safetensors.index.json"))


def test_a_broken_link_of_git_annex(model):
    file = model / "model.safetensors"
    file.unlink()
    file.symlink_to("../.git/annex/objects/xx/SHA256E-s9--a.safetensors")
    refused(model, r"model\.safetensors is a pointer of git-annex.*`git annex get")


def test_a_pointer_in_place_of_a_gguf_file(tmp_path):
    file = tmp_path / "model.gguf"
    with pytest.raises(ModelError, match=in_place(file)):
        load_model(str(file))


def test_counting_needs_no_weights(model, capsys):
    (model / "model.safetensors").write_text(LFS)
    assert run(["count", "--model", str(model), "--rank", "2"]) == 0


class TestFilesThatAreNotThere:
    def test_an_index_names_shards_that_are_not_there(self, sharded):
        shards = sorted(sharded.glob("model-*.safetensors"))
        for shard in shards[1:]:
            shard.unlink()
        lost = f"{len(shards) - 1} of {len(shards)} files are missing"
        refused(sharded, rf"index\.json names {shards[1].name}, which is not in .*\({lost}\)")

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
    def test_an_index_without_a_map(self, content, sharded):
        (sharded / "model.safetensors.index.json").write_text(content)
        refused(sharded, r"index\.json has no weight_map from tensors to files")

    def test_shards_without_an_index(self, sharded):
        (sharded / "model.safetensors.index.json").unlink()
        refused(sharded, r"no model\.safetensors\.index\.json, which says where each tensor is")

    def test_a_pickle_alone(self, model):
        (model / "model.safetensors").unlink()
        torch.save({}, model / "pytorch_model.bin")
        refused(model, r"a pickle \(pytorch_model\.bin\).*convert it once")

    def test_no_weights(self, model):
        (model / "model.safetensors").unlink()
        refused(model, r"has no weights: model\.safetensors is not there")

    def test_no_tokenizer(self, model):
        for file in model.glob("*token*"):
            file.unlink()
        message = r"has no tokenizer: tokenizer\.json is not there.*Copy tokenizer\.json and"
        refused(model, message)
        tokenizer().save_pretrained(model)  # the advice
        assert load_model(str(model))

    def test_a_tokenizer_configuration_alone(self, model):
        (model / "tokenizer.json").unlink()
        refused(model, r"has no tokenizer: tokenizer\.json is not there")


class TestTruncated:
    @pytest.mark.parametrize("kept", [0, 5, 300, 20_000])
    def test_weights(self, kept, model):
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        refused(
            model, rf"is truncated or not a safetensors file \({kept} bytes\).*fetch or copy it"
        )

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_json(self, name, model):
        file = model / name
        file.write_bytes(file.read_bytes()[:200])
        refused(model, rf"{name}.*fetch or copy it again", with_weights=name != "config.json")

    def test_a_tokenizer_of_something_else(self, model):
        (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Strange"}}')
        with pytest.raises(ModelError, match=r"no tokenizer that can be read") as caught:
            load_model(str(model))
        assert "\n" not in str(caught.value)


class TestAdapters:
    @pytest.fixture
    def adapter(self, tmp_path):
        model = tiny("llama")
        lorakit.attach(model, lorakit.LoraSpec(rank=2))
        lorakit.save_adapter(model, tmp_path / "adapter")
        (tmp_path / "adapter" / "lorakit.json").unlink()
        return tmp_path / "adapter"

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_a_pointer(self, name, adapter, capsys, model):
        match = in_place(adapter / name)
        for read in (read_adapter, read_stored, lambda f: load_adapter(tiny("llama"), f)):
            with pytest.raises(AdapterError, match=match):
                read(adapter)
        merge = ["merge", "--model", str(model), "--adapter", str(adapter), "--out", "x"]
        assert run(merge) == 2
        assert "is a Git LFS pointer" in capsys.readouterr().err

    def test_a_broken_link(self, adapter):
        (adapter / "adapter_model.safetensors").unlink()
        (adapter / "adapter_model.safetensors").symlink_to("nowhere")
        with pytest.raises(AdapterError, match="is a symbolic link to nowhere, which is not there"):
            read_adapter(adapter)

    def test_its_template(self, adapter):
        (adapter / "chat_template.jinja").write_text(LFS)
        with pytest.raises(AdapterError, match=TOLD.format("chat_template.jinja")):
            saved_chat_template(adapter)
        (adapter / "chat_template.jinja").unlink()
        (adapter / "tokenizer_config.json").write_text(LFS)
        with pytest.raises(AdapterError, match=TOLD.format("tokenizer_config.json")):
            saved_chat_template(adapter)

    @pytest.mark.parametrize("form", ["loralib", "mlx"])
    def test_those_of_other_systems(self, form, model, tmp_path, capsys):
        folder = Path(shutil.copytree(model, tmp_path / "theirs"))
        parameters = {"lora_parameters": {"rank": 2, "scale": 1.0}}
        (folder / "adapter_config.json").write_text(json.dumps(parameters))
        file = folder / ("lora.pt" if form == "loralib" else "adapters.safetensors")
        file.write_text(LFS)
        source = file if form == "loralib" else folder
        more = ["--alpha", "8"] if form == "loralib" else []
        command = ["import", str(source), "--base", str(model), "--out", str(tmp_path / "x"), *more]
        assert run(command) == 2
        assert f"{file.name} is a Git LFS pointer" in capsys.readouterr().err.replace("\n", "")
