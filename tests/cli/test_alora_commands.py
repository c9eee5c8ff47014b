"""`--alora`: trained, asked and gone on from by the command line; rows without the invocation are one error."""

import json
import re

import pytest


@pytest.fixture
def called(tmp_path):
    file = tmp_path / "called.jsonl"
    words = ("red", "green", "blue", "black")
    rows = [{"prompt": f"{w} {i} CALL ", "completion": w} for i in range(3) for w in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_text_becomes_tokens_that_peft_reads(train, lorakit, model_folder, called, tmp_path):
    out = tmp_path / "run"
    options = ("--template", "raw", "--alora", "CALL", "--learning-rate", 0.05)
    outcome = train(*options, out=out, data=called)
    assert outcome.code == 0, outcome.err
    assert re.search(
        r"acts from the last 'CALL' \([\d,]+\) of a row on", " ".join(outcome.out.split())
    )
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    tokens = config["alora_invocation_tokens"]
    assert tokens
    assert all(isinstance(token, int) for token in tokens)
    # What is recorded repeats the run, and an adapter goes on as it is.
    assert lorakit("train", out / "config.yaml", "--out", tmp_path / "again").code == 0
    again = json.loads((tmp_path / "again/adapter/adapter_config.json").read_text())
    assert again["alora_invocation_tokens"] == tokens
    more = ("--from", out / "adapter", "--learning-rate", 0.01)
    outcome = train(*more, out=tmp_path / "on", data=called)
    assert outcome.code == 0, outcome.err
    outcome = train(*more, "--alora", "red", out=tmp_path / "other", data=called)
    assert outcome.code != 0
    assert "alora is" in outcome.err


def test_asked_without_it_says_so(train, lorakit, model_folder, called, tmp_path, caplog):
    out = tmp_path / "run"
    outcome = train("--template", "raw", "--alora", "CALL", out=out, data=called)
    assert outcome.code == 0, outcome.err
    ask = ("generate", "--adapter", out / "adapter", "--max-new-tokens", 3)
    words = "which 1 of 1 prompts do not hold"
    caplog.clear()
    assert lorakit(*ask, "red 1 CALL ").code == 0
    assert words not in caplog.text
    silent = lorakit(*ask, "red 1")
    assert words in caplog.text
    alone = ("generate", "--model", model_folder, "--max-new-tokens", 3, "--template", "raw")
    assert silent.out == lorakit(*alone, "red 1").out


def test_rows_without_it_are_one_error_with_file_and_line(train, called, tmp_path):
    with called.open("a") as file:
        file.write(json.dumps({"prompt": "red", "completion": "red"}) + "\n")
    outcome = train(
        *("--template", "raw", "--alora", "CALL", "--eval-share", 0),
        out=tmp_path / "a",
        data=called,
    )
    assert outcome.code != 0
    said = " ".join(outcome.err.replace("\n", " ").split())
    assert "called.jsonl:13" in said.replace(" ", "")
    assert "does not hold the invocation" in said


def test_pefts_name_is_understood(train, called, tmp_path):
    outcome = train("--alora-invocation-tokens", "5,6", out=tmp_path / "a", data=called)
    assert outcome.code != 0
    assert "--alora" in outcome.err


def test_several_ranks_at_once_are_refused_by_name(lorakit, model_folder, called, tmp_path):
    outcome = lorakit(
        *("train", "--model", model_folder, "--data", called, "--out", tmp_path / "a"),
        *("--template", "raw", "--alora", "CALL", "--ranks", "2,4", "--max-steps", 2),
    )
    assert outcome.code != 0
    assert "activated LoRA cannot be trained beside" in " ".join(outcome.err.split())
