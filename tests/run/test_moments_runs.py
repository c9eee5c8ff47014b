"""Runs with AdamW's moments in 8 bits: alone, from a parent, several at once, and what is forecast."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from families import saved, tiny
from lorakit.config import load_config
from lorakit.forecast import shape_of
from lorakit.lora import LoraSpec, attach
from lorakit.models import empty_model
from lorakit.run.commands.outlining import outline
from lorakit.run.commands.together import run_together
from lorakit.run.commands.training import run_training
from lorakit.run.estimating import _moment_bytes
from lorakit.training import TrainSpec
from lorakit.training.moments import of_embeddings
from lorakit.training.optimizer import FlatAdamW

WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper"]
ROWS = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    # The tiny model's pairs have fewer than 4,096 elements each.
    monkeypatch.setattr("lorakit.training.optimizer.SMALL", 1)
    return saved(tmp_path / "tiny-llama")


@pytest.fixture
def settings(base, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))

    def made(out, **options):
        flat = {"model": str(base), "dtype": "float32", "data": [str(file)], "batch_size": 4}
        flat |= {"eval_data": [str(file)], "out": str(tmp_path / out), "max_steps": 6, "samples": 0}
        return load_config(None, flat | {"learning_rate": 0.01} | options)

    return made


def test_a_run_takes_a_quarter_of_the_bytes_and_learns_as_much(settings, tmp_path):
    wide = run_training(settings("wide"))
    packed = run_training(settings("packed", moments="8bit"))
    trained = packed["trainable_parameters"]
    assert wide["optimizer_state_bytes"] == 8 * trained
    # 2 bytes a parameter, and two scales for each 256, or fewer where a tensor ends.
    assert 2 * trained < packed["optimizer_state_bytes"] < 2.5 * trained
    assert "moments: 8bit" in (tmp_path / "packed" / "config.yaml").read_text()
    gain = wide["eval_loss_before"] - wide["eval_loss"]
    assert packed["eval_loss"] != wide["eval_loss"]
    assert packed["eval_loss"] == pytest.approx(wide["eval_loss"], abs=0.1 * gain)


@pytest.mark.parametrize(
    ("first", "then"), [("8bit", "8bit"), ("8bit", "32bit"), ("32bit", "8bit")]
)
def test_moments_go_over_to_a_child(settings, tmp_path, first, then):
    run_training(settings("parent", moments=first))
    parent = tmp_path / "parent" / "adapter"
    held = load_file(parent / "optimizer.safetensors")
    assert any(t.abs().sum() > 0 for n, t in held.items() if n.endswith("exp_avg"))
    given = {"from": str(parent), "learning_rate": 1e-3, "max_steps": 2, "moments": then}
    with_them = run_training(settings("child", **given))
    assert not any("begin anew" in note for note in with_them["notes"])
    (parent / "optimizer.safetensors").unlink()
    without = run_training(settings("orphan", **given))
    assert with_them["train_loss"] != without["train_loss"]


def test_several_jobs_at_once_are_each_what_they_are_alone(settings, tmp_path):
    together = run_together(settings("both", ranks="2,4", moments="8bit"))
    for rank in (2, 4):
        alone = run_training(settings(f"alone-{rank}", rank=rank, moments="8bit"))
        (job,) = [job for job in together["jobs"] if job["rank"] == rank]
        assert job["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-3)
        packed = 2.5 * alone["trainable_parameters"]
        assert alone["optimizer_state_bytes"] < packed


def test_the_forecast_counts_them(settings, monkeypatch):
    config = settings("none", model="smollm2-135m", data=[], eval_data=[], rank=64)
    needs = [
        outline(replace(config, train=TrainSpec(moments=how)), rows=100, row_tokens=50)
        for how in ("32bit", "8bit")
    ]
    wide, packed = (each.estimate.forecast for each in needs)
    less = wide.peak_memory_bytes - packed.peak_memory_bytes
    # What the optimizer itself holds of pairs of this rank.
    model = attach(empty_model("smollm2-135m"), LoraSpec(rank=64))
    own = [torch.empty_like(p, device="cpu") for p in model.parameters() if p.requires_grad]
    held = [
        FlatAdamW([torch.nn.Parameter(p) for p in own], TrainSpec(moments=how)).state_bytes
        for how in ("32bit", "8bit")
    ]
    assert less == pytest.approx(held[0] - held[1], rel=0.01)


def test_full_fine_tuning_forecasts_its_embedding_in_32_bits(monkeypatch):
    monkeypatch.setattr("lorakit.training.optimizer.SMALL", 1)
    shape, model = shape_of(tiny("llama")), tiny("llama")
    everything = shape.total_parameters
    spec = TrainSpec(moments="8bit")
    forecast = _moment_bytes(shape, everything, spec, full=True)
    flat = FlatAdamW(model.parameters(), spec, of_embeddings(model.modules()))
    assert forecast <= flat.state_bytes < 1.1 * forecast
    assert _moment_bytes(shape, everything, TrainSpec(), full=True) == 8 * everything
