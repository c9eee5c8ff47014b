"""DoRA in slots where it is not seen by the families of test_mixed.py: biases, plain batches, refusals."""

from dataclasses import replace

import engines
import pytest
import torch
from engines import SPEC, Alone, Driven, base, make_adapter

from lorakit.adapters.pairs import read_stored
from lorakit.errors import AdapterError
from lorakit.execution.lean import LeanBlocks
from lorakit.serving.cache import size_for
from lorakit.serving.forward import open_forward

TARGETS = ("all-linear", "lm_head")


def biased(family):
    """A base whose biases are not the zeros that they begin with."""
    model = base(family)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "norm" not in name and "ln_" not in name:
                parameter.normal_(0.0, 0.3, generator=g)
    return model


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_the_bias_is_not_multiplied(family, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "base", biased)
    folders = {
        "d8": make_adapter(biased(family), tmp_path / "d8", 8, 1, targets=TARGETS, dora=True),
        "r8": make_adapter(biased(family), tmp_path / "r8", 8, 2, targets=TARGETS),
    }
    engine, alone = Driven(family), Alone(family, folders)
    engine.folders = folders
    assert isinstance(engine.forward.blocks, LeanBlocks) == (family == "qwen2")
    ids = list(range(20, 44))
    order = ["d8", "", "r8", "d8"]
    for i, key in enumerate(order):
        engine.ask(i, ids[: 24 - i], key, most=5)
    engine.settle()
    for i, key in enumerate(order):
        assert engine.answers[i, 0].ids == alone.answer(ids[: 24 - i], key)[0], (i, key)
    assert len({tuple(engine.answers[i, 0].ids) for i in range(3)}) == 3


def test_steps_without_factors_stay_in_the_compiled_decoder(tmp_path, monkeypatch):
    engine = Driven("llama")
    if engine.forward.blocks._compiled is None:
        pytest.skip("no compiled kernels here")
    engine.folders = {
        "r8": make_adapter(base("llama"), tmp_path / "r8", 8, 1),
        "d8": make_adapter(base("llama"), tmp_path / "d8", 8, 1, dora=True),
    }
    called = []
    real = engine.forward.blocks._compiled.logits
    monkeypatch.setattr(
        engine.forward.blocks._compiled, "logits", lambda *a: called.append(1) or real(*a)
    )
    for key, compiled in (("r8", True), ("d8", False), ("r8", True)):
        called.clear()
        engine.ask(key + str(compiled), list(range(20, 30)), key, most=3)
        engine.settle()
        assert bool(called) == compiled, key


def test_a_magnitude_of_another_size_is_refused(tmp_path):
    bank = open_forward(base("llama"), SPEC, size_for(64)).bank
    stored = read_stored(make_adapter(base("llama"), tmp_path / "d8", 8, 1, dora=True))
    path, pair = next(iter(stored.pairs.items()))
    short = replace(pair, more={"magnitude": pair.more["magnitude"][1:]})
    with pytest.raises(AdapterError, match="does not fit this model"):
        bank.stage(replace(stored, pairs={**stored.pairs, path: short}))


def test_a_magnitude_that_overflows_is_refused(tmp_path):
    bank = open_forward(base("llama"), SPEC, size_for(64)).bank
    stored = read_stored(make_adapter(base("llama"), tmp_path / "d8", 8, 1, dora=True))
    path, pair = next(iter(stored.pairs.items()))
    # B is 0, so that the factors alone leave the range.
    magnitude = torch.full_like(pair.more["magnitude"], 1e6)
    huge = replace(pair, B=torch.zeros_like(pair.B), more={"magnitude": magnitude})
    bank.dtype = torch.float16
    with pytest.raises(AdapterError, match=r"is not finite in torch\.float16"):
        bank.stage(replace(stored, pairs={**stored.pairs, path: huge}))
