"""`lorakit train --from` with new rows: what is said, recorded, repeated and resumed."""

import json
from pathlib import Path

import pytest

from lorakit.adapters.trained_rows import TRAINED_ROWS
from lorakit.config import load_config
from lorakit.errors import InterruptedRunError
from lorakit.run.commands.training import run_training

NEW = ("milk", "coal")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))


@pytest.fixture
def both(rows_file, tmp_path) -> Path:
    """The parent's ten rows, and two that are new to it."""
    file = tmp_path / "both.jsonl"
    more = [{"prompt": f"say {word}", "completion": word[::-1]} for word in NEW]
    file.write_text("".join(json.dumps(row) + "\n" for row in more) + rows_file.read_text())
    return file


@pytest.fixture
def options(model_folder, tmp_path):
    def call(file: Path, out: str, **more: object):
        flags = {"model": str(model_folder), "data": (str(file),), "out": str(tmp_path / out)}
        steps = {"batch_size": 4, "max_steps": 5, "checkpoint_every": 2, "samples": 0}
        steps |= {"eval_share": 0.0, "learning_rate": 1e-3}
        return load_config(None, flags | steps | more)

    return call


@pytest.fixture
def parent(options, rows_file, tmp_path) -> Path:
    run_training(options(rows_file, "parent"))
    return tmp_path / "parent" / "adapter"


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def files(run: Path) -> list[bytes]:
    return [
        (run / "adapter" / name).read_bytes()
        for name in ("adapter_model.safetensors", TRAINED_ROWS)
    ]


def test_said_recorded_and_repeated(parent, both, lorakit, model_folder, tmp_path):
    common = ("train", "--model", model_folder, "--data", both, "--samples", 0, "--from", parent)
    steps = ("--batch-size", 4, "--max-steps", 4, "--learning-rate", 1e-3, "--eval-share", 0)
    outcome = lorakit(*common, *steps, "--new-row-weight", 2.5, "--out", tmp_path / "on")
    assert outcome.code == 0, outcome.err
    note = (
        "2 of 12 rows are new to the parent: each is taken 2.5 times as often as each of the others"
    )
    printed = " ".join((outcome.out + outcome.err).replace("│", " ").split())
    assert note in printed
    told = result(tmp_path / "on")
    assert told["new_rows"] == {"new": 2, "rows": 12, "weight": 2.5}
    assert any(note in each for each in told["notes"])
    assert "new_row_weight: 2.5\n" in (tmp_path / "on/config.yaml").read_text()
    again = lorakit("train", tmp_path / "on/config.yaml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert files(tmp_path / "again") == files(tmp_path / "on")
    refused = lorakit(*common[:-2], *steps, "--new-row-weight", 4, "--out", tmp_path / "fresh")
    assert refused.code == 2
    assert "name one with --from, or leave new_row_weight out" in " ".join(refused.err.split())
    for value in (0, -1, "often"):
        refused = lorakit(*common, *steps, "--new-row-weight", value, "--out", tmp_path / "bad")
        assert refused.code == 2
        assert "new_row_weight" in refused.err
    assert not (tmp_path / "fresh").exists()


def test_interrupted_and_resumed_to_the_same_bits(parent, both, options, tmp_path):
    run_training(options(both, "whole", **{"from": str(parent)}))
    # √(10 / 2) = 2.236.
    assert result(tmp_path / "whole")["new_rows"] == {"new": 2, "rows": 12, "weight": 2.2}
    for stops in (1, 3):
        asked: list[int] = []

        def stop(asked: list[int] = asked, stops: int = stops) -> bool:
            asked.append(1)
            return len(asked) >= stops

        out = f"cut-{stops}"
        with pytest.raises(InterruptedRunError):
            run_training(options(both, out, **{"from": str(parent)}), should_stop=stop)
        run_training(options(both, out, resume=True, **{"from": str(parent)}))
        assert files(tmp_path / out) == files(tmp_path / "whole")


def test_several_at_once_take_new_rows_as_each_would_alone(
    parent, both, options, lorakit, model_folder, tmp_path
):
    outcome = lorakit(
        *("train", "--model", model_folder, "--tasks", f"more={both},other={both}"),
        *("--task-option", f"more.from={parent}", "--task-option", "more.new_row_weight=2"),
        *("--eval-share", 0, "--samples", 0, "--batch-size", 4, "--max-steps", 5),
        *("--learning-rate", 1e-3, "--dtype", "float32", "--out", tmp_path / "many"),
    )
    assert outcome.code == 0, outcome.err
    told = [result(tmp_path / "many" / name) for name in ("more", "other")]
    assert [each["new_rows"] for each in told] == [{"new": 2, "rows": 12, "weight": 2.0}, None]
    run_training(options(both, "alone", dtype="float32", new_row_weight=2, **{"from": str(parent)}))
    alone = result(tmp_path / "alone")
    assert told[0]["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
    assert told[0]["tokens"] == alone["tokens"] != told[1]["tokens"]
    assert files(tmp_path / "many/more")[1] != files(tmp_path / "many/other")[1]
