"""Each command on a tiny model, as a user types it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_count_one_weight_as_in_the_paper(lorakit):
    said = lorakit("count", "--shape", "512x64", "--rank", 8).out
    assert "32,768" in said
    assert "512 + 4,096 = 4,608" in said
    assert "86 % fewer" in said


def test_count_the_built_in_model_without_loading_it(lorakit):
    said = lorakit("count", "--model", "smollm2-135m", "--rank", 8).out
    assert "trainable  2,442,240" in said
    assert "134,515,008" in said


def test_train_leaves_what_it_promises(train, tmp_path):
    outcome = train()
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert {"config.yaml", "metrics.jsonl", "adapter", "result.json", "report.html"} <= {
        p.name for p in run.iterdir()
    }
    figures = result(run)
    for name in (
        *("train_loss", "eval_loss", "trainable_parameters", "real_tokens_per_second"),
        *("fraction_of_limit", "peak_memory_bytes", "seconds"),
    ):
        assert math.isfinite(figures[name]), name
    assert figures["steps"] == 4
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["kind"] == "train"] == [1, 2, 3, 4]
    recorded = json.loads((run / "adapter" / "lorakit.json").read_text())
    assert recorded["provenance"]["template"]["kind"] == "chat"


def test_the_run_file_repeats_the_run_to_the_bit(train, lorakit, tmp_path):
    assert train("--dropout", 0.1).code == 0
    first, second = tmp_path / "run", tmp_path / "again"
    assert lorakit("train", first / "config.yaml", "--out", second).code == 0
    names = [f / "adapter" / "adapter_model.safetensors" for f in (first, second)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert result(first)["eval_loss"] == result(second)["eval_loss"]


def test_flags_win_over_the_run_file(train, lorakit, tmp_path):
    assert train().code == 0
    again = tmp_path / "again"
    assert lorakit("train", tmp_path / "run" / "config.yaml", "--out", again, "--rank", 4).code == 0
    assert yaml.safe_load((again / "config.yaml").read_text())["rank"] == 4
    assert json.loads((again / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_tensorboard_on_request(train, tmp_path):
    assert train("--tensorboard").code == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_activation_checkpointing_changes_no_loss(train, tmp_path):
    assert train(out=tmp_path / "a").code == 0
    assert train("--activation-checkpointing", "on", out=tmp_path / "b").code == 0
    assert result(tmp_path / "a")["eval_loss"] == pytest.approx(
        result(tmp_path / "b")["eval_loss"], rel=1e-5
    )


def test_a_base_in_bfloat16_under_pairs_in_float32(train, tmp_path):
    from safetensors.torch import load_file

    assert train("--dtype", "bfloat16", "--max-steps", 8, "--learning-rate", 0.01).code == 0
    figures = result(tmp_path / "run")
    assert figures["eval_loss"] < figures["eval_loss_before"]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_check_shows_and_writes_nothing(lorakit, model_folder, rows_file, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir())
    outcome = lorakit("check", "--model", model_folder, "--data", rows_file, "--rank", 2)
    assert outcome.code == 0, outcome.err
    said = "serving sends the same"
    for part in (
        "prompt + completion",
        "lengths in tokens",
        "forecast",
        "q_proj",
        said,
    ):
        assert part in outcome.out
    assert "rows.jsonl:" in "".join(outcome.out.split())  # a long path is wrapped
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_eval_with_and_without_the_adapter(train, lorakit, model_folder, rows_file, tmp_path):
    assert train("--max-steps", 30, "--learning-rate", 0.01).code == 0
    common = ("eval", "--model", model_folder, "--data", rows_file, "--max-new-tokens", 8)
    assert lorakit(*common, "--out", tmp_path / "base").code == 0
    adapter = tmp_path / "run" / "adapter"
    assert lorakit(*common, "--adapter", adapter, "--out", tmp_path / "adapted").code == 0
    base, adapted = result(tmp_path / "base"), result(tmp_path / "adapted")
    assert adapted["eval_loss"] < base["eval_loss"]
    assert adapted["perplexity"] == pytest.approx(math.exp(adapted["eval_loss"]))
    assert len((tmp_path / "adapted" / "answers.jsonl").read_text().splitlines()) == 10


def test_generate_and_chat(train, lorakit, model_folder, tmp_path, monkeypatch):
    assert train().code == 0
    adapter = tmp_path / "run" / "adapter"
    common = ("--model", model_folder, "--adapter", adapter, "--max-new-tokens", 6)
    first = lorakit("generate", *common, "say lamp")
    assert first.code == 0, first.err
    assert lorakit("generate", *common, "say lamp").out == first.out
    said = iter(["say lamp", "/new", "say lamp", ""])
    monkeypatch.setattr("builtins.input", lambda *a: next(said))
    outcome = lorakit("chat", *common)
    assert outcome.code == 0, outcome.err


def test_merge_writes_a_folder_that_transformers_loads(train, lorakit, model_folder, tmp_path):
    assert train("--max-steps", 20, "--learning-rate", 0.01).code == 0
    adapter, merged = tmp_path / "run" / "adapter", tmp_path / "merged"
    merge = ("merge", "--model", model_folder, "--adapter", adapter, "--out", merged)
    outcome = lorakit(*merge, "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    certificate = json.loads((merged / "certificate.json").read_text())
    assert certificate["passed"]
    plain = AutoModelForCausalLM.from_pretrained(merged)
    from lorakit import load_adapter, load_model

    adapted, _ = load_model(str(model_folder), dtype="float32")
    ids = torch.arange(5, 25)[None]
    base_logits = adapted(ids).logits
    load_adapter(adapted, adapter)
    with torch.no_grad():
        wanted, got = adapted(ids).logits, plain(ids).logits
    assert float((wanted - base_logits).abs().max()) > 1e-3
    assert float((wanted - got).abs().max()) <= 1e-4


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bits(model_folder, rows_file, tmp_path):
    """A real process, really interrupted."""
    command = [
        *(sys.executable, "-m", "lorakit", "train", "--model", str(model_folder)),
        *("--data", str(rows_file), "--rank", "2", "--batch-size", "2", "--max-steps", "60"),
        *("--samples", "0", "--checkpoint-every", "5", "--dropout", "0.1"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--out", str(out), *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = start(stopped)
    metrics = stopped / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count('"train"') >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (stopped / "result.json").exists()
    resumed = start(stopped, "--resume")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    undisturbed = start(whole)
    undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0
    for name in ("adapter/adapter_model.safetensors",):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert result(whole)["eval_loss"] == result(stopped)["eval_loss"]
    steps = [json.loads(x) for x in metrics.read_text().splitlines()]
    assert [e["step"] for e in steps if e["kind"] == "train"] == list(range(1, 61))
