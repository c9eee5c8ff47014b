"""`lorakit check` of a configuration alone: would this model train here? No weight is read."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import FAMILIES, saved, tiny
from lorakit import machine_rates
from lorakit.execution.family import read_decoder
from lorakit.execution.outline import outline_elements_kept
from lorakit.execution.runnable import Runnable
from lorakit.run import estimating
from lorakit.run.commands import outlining

# Llama 3 8B, by its published configuration: 8,030,261,248 parameters.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


@pytest.fixture
def quick(monkeypatch):
    """A machine of known rates: a measurement on an 8 B's shapes takes half a minute."""
    monkeypatch.setattr(machine_rates, "matmul_rate", lambda *_, **__: 1e12)
    monkeypatch.setattr(machine_rates, "elementwise_rate", lambda *_, **__: 1e10)


def figure(text, pattern):
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


def test_an_8b_by_its_configuration(lorakit, tmp_path, quick, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))

    def with_memory(there):
        for room in (outlining, estimating):
            monkeypatch.setattr(room, "available_memory", lambda _: there)

    with_memory(24_000_000_000)
    command = ("check", "--model", tmp_path, "--rank", 16, "--dtype", "bfloat16")
    said = lorakit(*command, "--rows", 320, "--row-tokens", 100, "--batch-size", 2)
    assert said.code == 0, said.err
    assert "base: 8,030,261,248 parameters, 16.1 GB in bfloat16" in said.out
    # q, o; k, v; gate, up, down: rank · (in + out) of each, in 32 blocks.
    pairs = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert figure(said.out, r"trainable: ([\d,]+) parameters") == 32 * 16 * pairs
    assert "160 steps" in said.out
    assert "320 rows, 32,000 tokens a pass" in said.out
    # 2 FLOPs forward and 2 back for each weight of a block and of the head, and 6 of a pair's.
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    flops = 4 * (32 * block + 128256 * 4096) + 6 * 32 * 16 * pairs + 7 * 100 * 4096 * 32
    assert figure(said.out, r"([\d,]+) MFLOP") == pytest.approx(flops / 1e6, abs=1)
    memory = figure(said.out, r"forecast: ([\d.]+) GB of memory")
    assert 16.1 < memory < 24
    assert "it fits" in said.out
    with_memory(12_000_000_000)
    assert "it does not fit" in lorakit(*command).out


def test_a_folder_with_weights_is_not_read_either(lorakit, model_folder, quick, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("lorakit.models.files.weight_files", refuse)
    said = lorakit("check", "--model", model_folder, "--rank", 2)
    assert said.code == 0, said.err
    assert f"base: {tiny('llama').num_parameters():,} parameters" in said.out
    assert "1,000 rows of 512 tokens are taken" in said.out


def test_rows_are_counted_with_the_tokenizer_alone(lorakit, model_folder, rows_file, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    command = ("check", "--data", rows_file, "--batch-size", 2, "--rank", 2)
    whole = lorakit(*command, "--model", model_folder)
    assert whole.code == 0, whole.err
    tokens = re.search(r"([\d,]+ training rows), .*; ([\d,]+) training tokens", whole.out)
    outlined = lorakit(*command, "--model", bare)
    assert outlined.code == 0, outlined.err
    assert "no weight was read" in outlined.out
    assert f"{tokens[1].split()[0]} rows, {tokens[2]} tokens a pass" in outlined.out
    assert (
        re.search(r"\d+ steps at learning rate \S+?[,;]", whole.out)[0].rstrip(",;") in outlined.out
    )


def test_a_hub_id_of_which_the_configuration_is_cached(
    lorakit, rows_file, tmp_path, quick, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some--giant"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    folder = saved(repository / "snapshots" / ("a" * 40))
    (folder / "model.safetensors").unlink()
    for further in ((), ("--data", rows_file)):
        said = lorakit("check", "--model", "some/giant", "--rank", 2, *further)
        assert said.code == 0, said.err
        assert f"base: {tiny('llama').num_parameters():,} parameters" in said.out


def test_what_it_refuses(lorakit, model_folder, rows_file, tmp_path):
    said = lorakit("check", "--model", model_folder, "--data", rows_file, "--rows", 8)
    assert said.code == 2
    assert "--data" in said.err
    said = lorakit("check", "--model", model_folder, "--rows", 0)
    assert said.code == 2
    assert "at least 1" in said.err
    said = lorakit("check", "--model", model_folder, "--rank", 99)
    assert said.code == 2
    assert "rank 99 is above" in said.err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    said = lorakit("check", "--model", tmp_path)
    assert said.code == 2
    assert "not a causal language model" in said.err


@pytest.mark.parametrize("family", FAMILIES)
def test_what_would_be_kept_is_what_a_loaded_model_keeps(family):
    model, lengths = tiny(family), [40, 7, 130]
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    seen = [
        None if m is None else [b.rms_of_heads is None for b in m.blocks]
        for m in map(read_decoder, (empty, model))
    ]
    assert seen[0] == seen[1]
    kept = outline_elements_kept(empty, lengths, torch.float32, torch.device("cpu"))
    expected = Runnable(model).elements_kept(lengths)
    assert (kept is None) == (expected is None)
    if expected is not None:
        assert kept == pytest.approx(expected)
