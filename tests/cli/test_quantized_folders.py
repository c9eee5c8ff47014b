"""Quantized bases from the command line: trained on as they are packed, counted, refused by name."""

import json
import re

import pytest

from families import tiny, tokenizer
from lorakit.adapters import load_adapter
from lorakit.kernels.packed.counting import packing_of, weight_bytes, workspace_bytes
from lorakit.models import empty_model, load_model
from lorakit.models.kept_packed import bytes_kept
from lorakit.models.spec import ModelSpec
from models.test_gguf import write
from models.test_gguf_packed import file_of
from quantized_folders import FOLDERS, digest, folder_of, settings


def source(name):
    return next(folder for folder in FOLDERS if folder.name == name)


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    texts = [
        {"prompt": f"What is {n} plus {n}?", "completion": f"It is {n + n}."} for n in range(24)
    ]
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return file


def train(lorakit, base, rows, out, *options):
    few = ("--epochs", 1, "--rank", 4, "--samples", 0, "--dtype", "float32")
    return lorakit("train", "--model", base, "--data", rows, "--out", out, *few, *options)


@pytest.mark.parametrize(
    "name", ["gptq_act_order", "awq", "bitsandbytes_nf4_nested", "compressed_fp8"]
)
def test_a_folder_is_trained_on_as_it_is_packed(lorakit, tmp_path, rows, name):
    base = folder_of(tmp_path, source(name))
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    packed = digest(load_model(str(base), dtype="float32")[0])
    done = train(lorakit, base, rows, tmp_path / "run")
    assert done.code == 0, done.err
    model, _ = load_model(str(base), dtype="float32")
    packing = packing_of(model)
    assert f"base in {packing}, the rest in float32," in done.err + done.out
    before_and_after = re.findall(r"held-out loss ([\d.]+) before, ([\d.]+) after", done.out)
    assert float(before_and_after[0][1]) < float(before_and_after[0][0])
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
    assert digest(model) == packed
    opened = load_adapter(model, tmp_path / "run" / "adapter")
    assert opened is not None


def test_check_counts_what_stays_packed(lorakit, tmp_path):
    base = folder_of(tmp_path, source("awq"))
    spec = ModelSpec(str(base), dtype="float32")
    model, _ = load_model(spec)
    expected = weight_bytes(model) + workspace_bytes(model)
    assert bytes_kept(empty_model(spec).float(), spec) == expected
    done = lorakit("check", "--model", base, "--dtype", "float32")
    assert done.code == 0, done.err
    assert "in packed, the rest in float32, on cpu" in done.out
    assert "the weights stay as the folder packs them; --base-dtype is for others" in done.out


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_method_that_is_not_read_is_one_message(lorakit, tmp_path, rows, command):
    base = folder_of(tmp_path, source("gptq"))
    settings(base, quant_method="hqq")
    options = ("--out", tmp_path / "run") if command == "train" else ()
    done = lorakit(command, "--model", base, "--data", rows, *options)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "is quantized by 'hqq', which lorakit does not read (bitsandbytes, GPTQ" in done.err
    assert "name the unquantized model" in done.err


def test_a_comparison_trains_every_weight_and_says_so(lorakit, tmp_path, rows):
    base = folder_of(tmp_path, source("awq"))
    done = lorakit("compare", "--model", base, "--data", rows, "--out", tmp_path / "run")
    assert done.code == 2
    assert "is quantized, and a comparison has an arm that trains every weight" in done.err


def test_an_adapter_of_kept_blocks_is_one_of_the_unpacked_file(lorakit, tmp_path, rows):
    words = tokenizer()
    words.add_tokens(["12"])
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    write(tmp_path / "base.gguf", tiny("llama", hidden_size=64, **heads), words, quantized=True)
    base, run = tmp_path / "base.gguf", tmp_path / "run"
    done = train(lorakit, base, rows, run, "--base-dtype", "packed")
    assert done.code == 0, done.err
    evaluate = ("eval", "--model", base, "--adapter", run / "adapter", "--data", rows)
    same = lorakit(*evaluate, "--base-dtype", "packed", "--dtype", "float32")
    assert same.code == 0, same.err
    assert "was trained beside" not in same.err + same.out
    other = lorakit(*evaluate, "--dtype", "float32")
    assert other.code == 0, other.err
    notes = load_adapter(load_model(str(base), dtype="float32")[0], run / "adapter").notes
    assert any(
        "it was trained beside a base in q8_0, and this one is held in full precision" in note
        and "(--base-dtype packed is what it was trained with)" in note
        for note in notes
    )
    kept, _ = load_model(str(base), dtype="float32", base_dtype="packed")
    assert not any("trained beside" in note for note in load_adapter(kept, run / "adapter").notes)
    merged = lorakit(
        "merge", "--model", base, "--adapter", run / "adapter", "--out", tmp_path / "m"
    )
    assert merged.code == 0, merged.err


@pytest.mark.parametrize("tied", [True, False])
def test_check_counts_a_file_that_stays_packed_without_converting_it(
    lorakit, tmp_path, monkeypatch, tied
):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    path = file_of(tmp_path, "Q4_K_M", tied=tied)
    spec = ModelSpec(str(path), dtype="float32", base_dtype="packed", device="cpu")
    counted = bytes_kept(empty_model(spec).float(), spec)
    for options in ((), ("--base-dtype", "packed")):
        said = lorakit("check", "--model", path, "--dtype", "float32", *options)
        assert said.code == 0, said.err
    assert "in packed, the rest in float32, on cpu" in said.out
    assert not list((tmp_path / "cache").glob("models/*"))
    model, _ = load_model(spec)
    assert counted == weight_bytes(model) + workspace_bytes(model)
    assert counted == bytes_kept(empty_model(spec).float(), spec)
