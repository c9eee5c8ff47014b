"""`lorakit train --ranks` and `--tasks`: several adapters, each like that of a run of its own."""

import json

import pytest
import torch
from safetensors.torch import load_file


def flat(text):
    return " ".join(text.replace("│", " ").split())


def tensors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm() / tensor.norm()) < 1e-5, name


@pytest.fixture
def together(lorakit, model_folder, rows_file, tmp_path):
    def call(*flags, out="many", data=True):
        rows = ("--data", rows_file) if data else ()
        return lorakit(
            *("train", "--model", model_folder, *rows, "--out", tmp_path / out),
            *("--dtype", "float32", "--max-new-tokens", 4, "--samples", 2),
            *("--batch-size", 4, "--max-steps", 4, *flags),
        )

    return call


def test_each_rank_is_the_run_that_it_would_be_alone(together, lorakit, tmp_path):
    outcome = together("--ranks", "2,4", "--targets", "q_proj,down_proj")
    assert outcome.code == 0, outcome.err
    out = tmp_path / "many"
    result = json.loads((out / "result.json").read_text())
    assert [job["rank"] for job in result["jobs"]] == [2, 4]
    for name in ("r2", "r4"):
        own = out / name
        for file in ("report.html", "metrics.jsonl", "samples.json", "config.yaml"):
            assert (own / file).is_file()
        # Its own config.yaml repeats it alone.
        again = lorakit("train", own / "config.yaml", "--out", tmp_path / f"alone-{name}")
        assert again.code == 0, again.err
        same(tensors(own), tensors(tmp_path / f"alone-{name}"))
        ours, theirs = (
            json.loads((place / "result.json").read_text())
            for place in (own, tmp_path / f"alone-{name}")
        )
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
        assert ours["trainable_parameters"] == theirs["trainable_parameters"]


def test_tasks_by_name_or_file_with_ranks(together, rows_file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(rows_file.read_text().replace("say", "shout").replace("lamp", "light"))
    outcome = together(
        "--tasks", f"first={rows_file},{other}", "--ranks", "1,2", "--save-as", "mine",
        "--store", tmp_path / "store", data=False,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "many" / "result.json").read_text())
    names = ["first-r1", "first-r2", "other-r1", "other-r2"]
    assert [job["name"] for job in result["jobs"]] == names
    assert [job["saved_as"] for job in result["jobs"]] == [f"mine-{name}@1" for name in names]
    first, second = (tensors(tmp_path / "many" / name) for name in ("first-r2", "other-r2"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_finished_one_resumes_to_the_same(together, lorakit, tmp_path):
    assert together("--ranks", "1,2").code == 0
    before = tensors(tmp_path / "many" / "r2")
    again = lorakit("train", "--resume", "--out", tmp_path / "many")
    assert again.code == 0, again.err
    assert all(torch.equal(t, before[n]) for n, t in tensors(tmp_path / "many" / "r2").items())


def test_check_shows_every_job(lorakit, model_folder, rows_file):
    outcome = lorakit("check", "--model", model_folder, "--data", rows_file, "--ranks", "1,2")
    assert outcome.code == 0, outcome.err
    assert "r1" in outcome.out
    assert "r2" in outcome.out


def test_bad_input_is_one_message(together, rows_file, tmp_path):
    for flags, data, words in (
        (("--ranks", "2,2"), True, "names a rank twice"),
        (("--ranks", "2,4", "--rank", 5), True, "rank and ranks are both given"),
        (("--ranks", "2", "--rank-pattern", "{q_proj: 1}"), True, "rank_pattern fixes"),
        (("--tasks", f"a={rows_file}"), True, "data and tasks both name rows"),
        (("--tasks", f"a={rows_file},a={rows_file}"), False, "two tasks are called 'a'"),
        (("--tasks", f"a={rows_file}", "--eval-data", rows_file), False, "one task's rows"),
        (("--tasks", "a b=x.jsonl"), False, "write NAME=SOURCE"),
        (("--ranks", "2,400"), True, "rank 400 is above"),
        (("--ranks", "2", "--from", tmp_path), True, "several adapters at once start anew"),
    ):
        outcome = together(*flags, out="bad", data=data)
        assert outcome.code == 2, outcome.out + outcome.err
        assert words in flat(outcome.err), outcome.err
        assert not (tmp_path / "bad").exists()
