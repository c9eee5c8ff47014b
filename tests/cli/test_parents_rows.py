"""Held-out rows that one of the two was trained on: they do not decide in silence."""

import json
from pathlib import Path

import pytest

import lorakit as lk
from lorakit.adapters.store import Store

WORDS = "lamp desk river stone cloud paper window garden copper violet silver orange"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    return Store()


def rows(folder: Path, name: str, words: str) -> Path:
    file = folder / f"{name}.jsonl"
    lines = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words.split()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def go(lorakit, model_folder, tmp_path):
    """`lorakit train` on the tiny model: what it printed on one line, and its result."""

    def call(*flags, out: str) -> tuple[str, dict]:
        outcome = lorakit(
            *("train", "--model", model_folder, "--out", tmp_path / out, "--samples", 0),
            *("--batch-size", 4, "--max-steps", 6, "--learning-rate", 0.01, *flags),
        )
        assert outcome.code == 0, outcome.err
        said = " ".join((outcome.out + outcome.err).replace("│", " ").split())
        return said, json.loads((tmp_path / out / "result.json").read_text())

    return call


def test_a_run_on_the_parents_held_out_rows_is_not_called_better_for_them(go, tmp_path):
    file = rows(tmp_path, "rows", WORDS)
    go("--data", file, "--eval-share", 0.25, "--save-as", "travel", out="parent")
    said, result = go("--data", file, "--from", "travel", "--eval-share", 0, out="on")
    against = result["against_parent"]
    assert (against["verdict"], against["parent_rows"]) == ("not compared", None)
    assert "travel@1's own held-out rows were not measured: this run trains on them" in said
    assert "the result was not compared with travel@1: no rows were held out" in said


def test_the_others_of_the_parents_rows_are_measured(go, tmp_path):
    old, held = rows(tmp_path, "old", WORDS), rows(tmp_path, "held", "bread mirror ladder candle")
    go("--data", old, "--eval-data", held, "--save-as", "travel", out="parent")
    new = rows(tmp_path, "new", "bread mirror walnut marble")
    said, result = go("--data", new, "--from", "travel", "--eval-share", 0, out="on")
    parents = result["against_parent"]["parent_rows"]
    assert parents["rows"] == 2
    assert "travel@1's own held-out rows were measured without 2 that this run trains on" in said


def test_held_out_rows_that_the_parent_knows_are_said(go, tmp_path):
    old = rows(tmp_path, "old", WORDS)
    go("--data", old, "--eval-share", 0, "--save-as", "travel", out="parent")
    held = rows(tmp_path, "held", "lamp desk river bread")
    new = rows(tmp_path, "new", "walnut marble")
    said, _ = go("--data", new, "--eval-data", held, "--from", "travel", out="on")
    assert "the parent was trained on 3 of the 4 held-out rows" in said
    said, _ = go("--data", new, "--eval-data", new, "--from", "travel", out="other")
    assert "the parent was trained on" not in said


def test_python_leaves_them_out_too(go, model_folder, tmp_path):
    file = rows(tmp_path, "rows", WORDS)
    go("--data", file, "--eval-share", 0.25, out="parent")
    model, tokenizer = lk.load_model(str(model_folder))
    lk.load_adapter(model, tmp_path / "parent/adapter", trainable=True)
    fitted = lk.train(model, tokenizer, file, eval_share=0, max_steps=2, learning_rate=0.01)
    assert any("own held-out rows were not measured: this run trains" in n for n in fitted.notes)
