"""A base in fewer bits is served as it is: the answers of the same weights dequantized, in transformers' own code."""

import json
import urllib.request

import pytest
import torch

import lorakit
from families import saved
from lorakit.adapters import save_adapter
from lorakit.adapters.store import Store
from lorakit.execution.lean import LeanBlocks
from lorakit.execution.stepping import open_blocks
from lorakit.kernels import native
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.packing import whole
from lorakit.lora import LoraSpec, attach
from lorakit.models import load_model


def dequantized(base, name):
    """The model in full precision with the weights that a format gives."""
    packed = dict(
        load_model(str(base), dtype="float32", base_dtype=name, device="cpu")[0].named_modules()
    )
    model, tokenizer = load_model(str(base), dtype="float32", device="cpu")
    for path, module in model.named_modules():
        if isinstance(packed[path], PackedLinear):
            module.weight.data = whole(packed[path].packing, torch.float32)
    return model, tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_steps_are_computed_by_short_code(tmp_path, monkeypatch, name, dtype):
    kernels = native.choose(getattr(torch, dtype), torch.device("cpu")).name
    if dtype == "bfloat16" and kernels == native.PLAIN:
        pytest.skip(
            "plain torch rounds few rows of int8 otherwise than many: sequences may go apart"
        )
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = str(saved(tmp_path / "base"))
    model, _ = load_model(base, dtype=dtype, base_dtype=name, device="cpu")
    blocks, _ = open_blocks(model)  # which a trial has compared with the model's own code
    assert isinstance(blocks, LeanBlocks)
    assert "short code" in blocks.way


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_answers_of_base_and_adapter(tmp_path, monkeypatch, name, dora):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = saved(tmp_path / "base")
    model, tokenizer = dequantized(base, name)
    prompt = "what is it"
    ids = tokenizer(prompt, return_tensors="pt").input_ids

    def expected():
        made = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(made, skip_special_tokens=True)

    wanted = {"base": expected()}
    attach(model, LoraSpec(rank=2, dora=dora))
    generator = torch.Generator().manual_seed(5)
    for path, parameter in model.named_parameters():
        if path.endswith(".B"):
            parameter.data.normal_(generator=generator)
    save_adapter(model, tmp_path / "other")
    wanted["other"] = expected()
    assert wanted["other"] != wanted["base"]
    options = {"dtype": "float32", "device": "cpu", "base_dtype": name}
    with lorakit.serve(str(base), adapters=[str(tmp_path / "other")], **options) as server:
        for who, text in wanted.items():
            body = {"model": who, "prompt": prompt, "max_tokens": 8, "temperature": 0}
            request = urllib.request.Request(
                server.url + "/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                assert json.loads(answer.read())["choices"][0]["text"] == text


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    """A base and a store with adapters that were trained on it in nf4, and one in full precision."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = saved(tmp_path / "base")
    for name, held in (("first", "nf4"), ("second", "nf4"), ("plain", "full")):
        model, _ = load_model(str(base), dtype="float32", device="cpu", base_dtype=held)
        attach(model, LoraSpec(rank=2))
        save_adapter(model, tmp_path / name)
        if held == "nf4":
            Store(tmp_path / "store").add(tmp_path / name, name)
    return base


def served(*args, **options):
    """How a server holds its base, and its notes of that."""
    small = {"cache_gb": 0.01, "slots": 2}
    with lorakit.serve(*args, dtype="float32", device="cpu", **small, **options) as server:
        notes = [note for note in server.notes if note.startswith("base held")]
        return server._ready.catalog.held, notes


def test_the_base_is_held_as_all_adapters_were_trained(kinds, tmp_path):
    base, store = str(kinds), str(tmp_path / "store")
    held, notes = served(base, store=store)
    assert held == "nf4"
    assert "as all 2 adapters were trained" in notes[0]
    held, notes = served(adapters=[tmp_path / "first"])  # the base is recorded too
    assert held == "nf4"
    assert "as the adapter was trained" in notes[0]
    assert served(base, store=store, base_dtype="full") == (None, [])
    assert served(base, store=store, base_dtype="int8") == ("int8", [])
    assert served(base, adapters=[tmp_path / "plain"]) == (None, [])
    assert served(base, store=str(tmp_path / "empty")) == (None, [])


def test_adapters_of_different_bases_are_named(kinds, tmp_path):
    folders = [tmp_path / name for name in ("first", "plain")]
    held, notes = served(str(kinds), adapters=folders)
    assert held is None
    assert "(in nf4: first; the others in full precision): --base-dtype nf4" in notes[0]
    # What a store holds for another base decides nothing.
    other = saved(tmp_path / "other", family="qwen2")
    model, _ = load_model(str(other), dtype="float32", device="cpu", base_dtype="int8")
    attach(model, LoraSpec(rank=2))
    save_adapter(model, tmp_path / "elsewhere")
    Store(tmp_path / "store").add(tmp_path / "elsewhere", "elsewhere")
    assert served(str(kinds), store=str(tmp_path / "store"))[0] == "nf4"
    assert served(str(other), store=str(tmp_path / "store"))[0] == "int8"
