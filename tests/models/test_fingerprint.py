"""Hashes see every change of content and none of form."""

import json
import os
import shutil

import pytest
import torch

from families import saved, tiny, tokenizer
from lorakit.errors import ModelError
from lorakit.models import fingerprint
from lorakit.models.fingerprint import BaseIdentity, hash_files, identify, identify_loaded
from lorakit.models.load import load_model


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))


def test_files_loaded_in_any_dtype_and_memory_agree(tmp_path):
    folder = saved(tmp_path / "base")
    from_files = identify(str(folder))
    assert from_files.name == "base"
    assert from_files.revision is None
    for dtype in ("float32", "bfloat16"):
        assert identify_loaded(*load_model(str(folder), dtype=dtype)) == from_files
    in_memory = identify_loaded(tiny("llama"), tokenizer(), name="base")
    assert in_memory == from_files


def test_tied_weights_in_memory_hash_as_they_are_saved(tmp_path):
    model = tiny("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert fingerprint.hash_tensors(model.state_dict()) == hash_files(
        [tmp_path / "model.safetensors"]
    )


def test_sharding_does_not_matter(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 1
    assert hash_files(shards) == hash_files([tmp_path / "one" / "model.safetensors"])
    with pytest.raises(ModelError, match=r"is in .* and in"):
        hash_files([shards[0], shards[0]])


def test_each_part_is_seen_alone(tmp_path):
    first = identify(str(saved(tmp_path / "a")))
    folder = tmp_path / "b"
    shutil.copytree(tmp_path / "a", folder)
    (folder / "chat_template.jinja").write_text("another")
    assert first.differences(identify(str(folder))) == ("template",)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_id": 2}
    (folder / "tokenizer.json").write_text(json.dumps(raw, indent=7))
    assert first.differences(identify(str(folder))) == ("template",)
    raw["added_tokens"][0]["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert first.differences(identify(str(folder))) == ("weights", "tokenizer", "template")


def test_hashing_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    folder = saved(tmp_path / "base")
    first = identify(str(folder))
    monkeypatch.setattr(fingerprint, "hash_files", lambda _: pytest.fail("hashed again"))
    assert identify(str(folder)) == first
    monkeypatch.undo()
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    for note in (tmp_path / "cache" / "fingerprints").iterdir():
        note.write_text('{"weights')  # a damaged note is no reason to fail
    assert identify(str(folder)) == first
    other = tiny("llama", seed=1)
    other.save_pretrained(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert first.differences(identify(str(folder))) == ("weights",)


def test_dtype_and_name_are_part_of_a_tensor():
    x = torch.arange(6, dtype=torch.int16)
    hashes = {
        fingerprint.hash_tensors(tensors)
        for tensors in ({"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.float16)})
    }
    assert len(hashes) == 4


def test_dict_round_trip_is_strict():
    identity = BaseIdentity("m", None, "1", "2", "3")
    assert BaseIdentity.from_dict(identity.to_dict()) == identity
    with pytest.raises(ModelError, match=r"unknown key 'weight_sha256': did you mean"):
        BaseIdentity.from_dict({**identity.to_dict(), "weight_sha256": "1"})
    with pytest.raises(ModelError, match="'name' is missing"):
        BaseIdentity.from_dict({"revision": None})
