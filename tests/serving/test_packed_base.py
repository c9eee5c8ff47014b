"""A base in fewer bits is served as it is: the answers of the same weights dequantized, in transformers' own code."""

import json
import urllib.request

import pytest
import torch

import lorakit
from families import saved
from lorakit.adapters import save_adapter
from lorakit.execution.lean import LeanBlocks
from lorakit.execution.stepping import open_blocks
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
