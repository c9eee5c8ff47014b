"""`lorakit train --ranks` and `--tasks`: several adapters, each like that of a run of its own."""

import json
import re

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
    assert all(f"stored {name}:  mine-{name}@1" in outcome.out for name in names)
    first, second = (tensors(tmp_path / "many" / name) for name in ("first-r2", "other-r2"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_tasks_have_rows_templates_and_parents_of_their_own(
    together, lorakit, rows_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    held = tmp_path / "held.jsonl"
    held.write_text(rows_file.read_text().replace("say", "shout"))
    table = tmp_path / "table.csv"
    lines = (f"{word},{word.upper()}\n" for word in ("lamp", "desk", "river", "stone", "cloud"))
    table.write_text("question,answer\n" + "".join(lines))
    rank = ("--rank", 3, "--learning-rate", 0.01)
    parent = together(*rank, "--eval-data", held, "--save-as", "mine", out="parent")
    assert parent.code == 0, parent.err
    own = (
        *("first.eval_data=" + str(held), "first.from=mine"),
        *("table.prompt={question}: ", "table.completion={answer}", "table.eval_share=0.4"),
    )
    flags = [part for option in own for part in ("--task-option", option)]
    outcome = together("--tasks", f"first={rows_file},table={table}", *flags, data=False)
    assert outcome.code == 0, outcome.err
    out = tmp_path / "many"
    first, other = (json.loads((out / n / "result.json").read_text()) for n in ("first", "table"))
    assert (first["rank"], first["eval_rows"]) == (3, 10)
    assert first["parent"]["name"] == "mine@1"
    assert first["against_parent"]["parent_rows"]["rows"] == 10
    assert first["eval_loss"] <= first["eval_loss_before"]
    before = json.loads((tmp_path / "parent" / "result.json").read_text())
    assert first["eval_loss_before"] == pytest.approx(before["eval_loss"], rel=1e-5)
    assert (other["eval_rows"], other["parent"]) == (2, None)
    sample = json.loads((out / "table" / "samples.json").read_text())[0]
    assert sample["prompt"].rstrip().endswith(":")
    # One page for both, and each alone by its own config.yaml.
    page = (out / "report.html").read_text()
    for name in ("first", "table"):
        assert f'id="job-{name}"' in page
        assert f'href="{name}/report.html"' in page
    assert "<script" not in page
    assert page.count("<svg") >= 4
    again = lorakit("train", out / "first" / "config.yaml", "--out", tmp_path / "alone")
    assert again.code == 0, again.err
    same(tensors(out / "first"), tensors(tmp_path / "alone"))


def test_options_of_tasks_in_a_run_file(lorakit, model_folder, rows_file, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {model_folder}\nmax_steps: 2\nsamples: 0\nbatch_size: 4\n"
        f"tasks: [a={rows_file}, b={rows_file}]\n"
        f"task_option:\n  a: {{eval_share: 0.5, max_steps: 3}}\n  b.eval_data: {rows_file}\n"
    )
    outcome = lorakit("train", file, "--out", tmp_path / "many")
    assert outcome.code == 0, outcome.err
    jobs = json.loads((tmp_path / "many" / "result.json").read_text())["jobs"]
    assert [(job["steps"], job["eval_rows"]) for job in jobs] == [(3, 5), (2, 10)]


def test_answers_at_the_limit_are_said_of_every_job(together):
    done = together("--ranks", "1,2", "--max-new-tokens", 1)
    assert done.code == 0, done.err
    for name in ("r1", "r2"):
        said = rf"note: {name}: before training, 1 of 1 answers reached the limit of 1 tokens"
        assert re.search(said, done.out), done.out[-1500:]


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
        (("--ranks", "2", "--from", tmp_path), True, "has its rank already"),
        (("--tasks", f"a={rows_file}", "--task-option", "b.prompt=x"), False, "no such task"),
        (
            ("--tasks", f"a={rows_file}", "--task-option", "a.evaldata=x"),
            False,
            "did you mean 'eval_data'",
        ),
        (("--tasks", f"a={rows_file}", "--task-option", "a.seed=1"), False, "no such option"),
        (("--ranks", "2", "--task-option", "a.prompt=x"), True, "there are no tasks"),
    ):
        outcome = together(*flags, out="bad", data=data)
        assert outcome.code == 2, outcome.out + outcome.err
        assert words in flat(outcome.err), outcome.err
        assert not (tmp_path / "bad").exists()
