"""Mixed batches beside packed experts and GPT-2's layers: each answer equals that of its request alone.

The oracle is transformers' own code over plain weights, those that the packed ones stand for, with the
adapter loaded, one request at a time, without a cache.
"""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import engines
import pytest
import torch
from engines import SPEC, Alone, Watched, make_adapter

from families import tokenizer
from lorakit.kernels.packed.held import HoldsPacked
from lorakit.kernels.packed.linear import PackedLinear
from lorakit.kernels.packed.matrices import PackedMatrices
from lorakit.kernels.packed.packing import whole
from lorakit.kernels.slot_plan import SlotRun
from lorakit.models import load_model

EXPERTS: dict[str, dict[str, Any]] = {
    "both": {"rank": 3, "target_parameters": ("experts",)},
    "wide": {"rank": 11, "targets": (), "target_parameters": ("experts",)},
    "down": {"rank": 2, "targets": ("q_proj",), "target_parameters": ("experts.down_proj",)},
    "attention": {"rank": 4},
}
LINEAR: dict[str, dict[str, Any]] = {"r4": {"rank": 4}, "r11": {"rank": 11}}


def opened(folder: Path, name: str) -> tuple[Any, Any]:
    """The packed model of a folder, and a plain one with the same weights."""
    packed, _ = load_model(str(folder), dtype="float32", device="cpu", base_dtype=name)
    plain, _ = load_model(str(folder), dtype="float32", device="cpu")
    for path, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            plain.get_submodule(path).weight.data = module.weight.contiguous()
        if isinstance(module, PackedMatrices):
            each = [whole(module.packing(e), torch.float32) for e in range(module.count)]
            weight = torch.stack(each)
            plain.get_parameter(path).data = weight.mT.contiguous() if module.swapped else weight
    return packed, plain


@pytest.mark.parametrize(
    ("family", "name", "adapters"),
    [
        ("mixtral", "nf4", EXPERTS),
        ("gpt_oss", "int8", EXPERTS),
        ("qwen3_moe", "int4", EXPERTS),
        ("llama4_text", "fp8", {key: EXPERTS[key] for key in ("both", "attention")}),
        ("gpt2", "nf4", LINEAR),
        ("gpt2", "int8", LINEAR),
    ],
)
def test_each_answer_equals_the_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str, adapters: Any
) -> None:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    engines.base(family).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    packed, plain = opened(tmp_path / "base", name)
    folders = {
        key: make_adapter(copy.deepcopy(plain), tmp_path / key, seed=number, **spec)
        for number, (key, spec) in enumerate(adapters.items())
    }
    before = {path: held(module) for path, module in holders(packed).items()}
    assert before
    monkeypatch.setattr(engines, "base", lambda _: packed)
    engine = Watched(family, replace(SPEC, slot_rank=4))
    monkeypatch.setattr(engines, "base", lambda _: copy.deepcopy(plain))
    engine.folders, oracle = folders, Alone(family, folders)
    numbers = random.Random(7)
    asked = []
    for number, key in enumerate(["", *adapters, *adapters, "", *reversed(list(adapters))]):
        ids = [numbers.randrange(5, 200) for _ in range(numbers.randrange(1, 24))]
        asked.append((key, ids))
        engine.ask(number, ids, key, most=5)
        for _ in range(number % 3):
            engine.step()
    engine.settle()
    for number, (key, ids) in enumerate(asked):
        tokens, logits = oracle.answer(ids, key)
        assert engine.answers[number, 0].ids == tokens, (number, key)
        assert (torch.stack(engine.logits[number, 0]) - logits).abs().max() <= 2e-4
    if adapters is EXPERTS:  # in one step, no adapter's tokens apart from the others'
        runs = {SlotRun(r.slot, r.width, 1) for r in engine.pool._in if r and r.key != "attention"}
        assert runs
        assert not engine.forward.experts.parts(list(runs))
    for path, module in holders(packed).items():
        was = before[path.removesuffix(".base")]
        assert all(torch.equal(tensor, was[key]) for key, tensor in held(module).items())


def holders(model: Any) -> dict[str, HoldsPacked]:
    return {path: m for path, m in model.named_modules() if isinstance(m, HoldsPacked)}


def held(module: HoldsPacked) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.held.items()}
