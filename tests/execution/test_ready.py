"""A model that is made ready keeps its modules and paths, whatever is done with it."""

import json

import pytest
import torch

import lorakit
from families import saved, tiny, tokenizer
from lorakit.adapters import load_adapter, save_adapter
from lorakit.config import load_config
from lorakit.evaluation.likelihood import row_losses
from lorakit.execution.generate import generate
from lorakit.execution.stepping import open_blocks
from lorakit.lora import LoraSpec, attach, lora_layers
from lorakit.run.commands.evaluation import run_evaluation
from lorakit.run.commands.training import run_training
from lorakit.training import TrainSpec

ROWS = [{"prompt": f"count {i}", "completion": str(i * 7)} for i in range(24)]
OPTIONS = {"max_steps": 4, "batch_size": 4, "eval_share": 0.25, "learning_rate": 0.01}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def modules(model):
    return {path: id(module) for path, module in model.named_modules()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "bloom"])
def test_modules_are_those_after_loading_while_it_trains_evaluates_and_generates(
    family, checkpointing, rows
):
    model, words = tiny(family), tokenizer()
    loaded = modules(model)
    during = []
    for module in list(model.modules()):
        module.register_forward_pre_hook(lambda *_: during.append(modules(model)))

    def seen():
        assert during
        states, during[:] = [s for s in during if s != during[0]], []
        return states

    generate(model, words, [[5, 6, 7]], max_new_tokens=2)
    first = during[0]
    assert not seen()
    assert first == loaded
    attach(model, LoraSpec(rank=2))
    attached = modules(model)
    options = {**OPTIONS, "activation_checkpointing": checkpointing}
    lorakit.train(
        model, words, str(rows), report=lambda event: during.append(modules(model)), **options
    )
    assert during[0] == attached
    assert not seen()
    assert modules(model) == attached
    table = lorakit.data.load_data(
        lorakit.DataSpec(data=(str(rows),)), words, seed=0, context_length=200
    ).train
    row_losses(model, table, 100)
    assert during[0] == attached
    assert not seen()


def test_serving_keeps_the_modules_of_a_model_that_runs_by_its_own_code():
    for family in ("gpt2", "llama"):
        model = tiny(family)
        loaded = modules(model)
        blocks, layers = open_blocks(model)
        blocks.use(())
        assert modules(model) == loaded
        assert len(layers) == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_saved_in_the_middle_of_training_loads(family, rows, tmp_path):
    model = attach(tiny(family), LoraSpec(rank=2))
    pairs = {}

    def report(event):
        if event["kind"] == "train" and event["step"] == 2:
            save_adapter(model, tmp_path / "middle")
            pairs.update({p: (x.A.clone(), x.B.clone()) for p, x in lora_layers(model).items()})

    lorakit.train(model, tokenizer(), str(rows), report=report, **OPTIONS)
    again = tiny(family)
    load_adapter(again, tmp_path / "middle")
    layers = lora_layers(again)
    assert layers.keys() == pairs.keys() == lora_layers(model).keys()
    for path, (A, B) in pairs.items():
        assert torch.equal(layers[path].A, A)
        assert torch.equal(layers[path].B, B)
        assert B.abs().max() > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_train_and_eval_report_the_same_figure_of_one_adapter(family, rows, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:7]))
    folder = saved(tmp_path / "model", family)
    given = {"model": str(folder), "data": (str(rows),), "max_steps": 4, "batch_size": 4}
    config = load_config(
        None, {**given, "eval_data": (str(held_out),), "out": str(tmp_path / "run"), "samples": 0}
    )
    trained = run_training(config)
    measured = run_evaluation(
        load_config(None, {"model": str(folder), "data": (str(held_out),)}),
        adapter=tmp_path / "run" / "adapter",
        metrics="none",
        out=None,
    )
    assert measured["eval_loss"] == trained["eval_loss"] != trained["eval_loss_before"]
    assert TrainSpec().batch_tokens == config.train.batch_tokens
