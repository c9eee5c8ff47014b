"""eval, shrink and rank --inspect read rows as they were trained, say so, and say what works where not."""

import json

import pytest

from families import tiny, tokenizer
from lorakit.config import load_config
from lorakit.run.commands.training import run_training

ROWS = [{"question": f"say {n}", "kind": "ab"[n % 2], "n": n} for n in range(12)]


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


SAID = r"Rows are mapped: prompt '{question}\n', completion '{kind}'"


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """A store with the adapter 'kinds', and the rows that it was trained on."""
    root = tmp_path_factory.mktemp("recorded")
    mapping = {"prompt": r"{question}\n", "completion": "{kind}", "system": "Be brief."}
    rows = lines(root / "rows.jsonl", ROWS)
    options = {
        "model": str(model_folder),
        "data": (str(rows),),
        "out": str(root / "run"),
        "rank": 2,
    }
    options |= {"max_steps": 1, "samples": 0, "save_as": "kinds", "store": str(root / "store")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(root / "cache"))
        run_training(load_config(None, {**options, **mapping}))
    return root


@pytest.fixture
def adapter(trained, monkeypatch):
    monkeypatch.setenv("LORAKIT_STORE", str(trained / "store"))
    monkeypatch.setenv("LORAKIT_CACHE", str(trained / "cache"))
    return trained / "rows.jsonl"


def test_eval_measures_what_was_trained(lorakit, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "eval"
    done = lorakit("eval", "--adapter", "kinds", "--data", adapter, "--out", out)
    assert done.code == 0, done.err
    assert SAID in done.out
    result = json.loads((out / "result.json").read_text())
    assert (result["model"], result["rows"]) == ("tiny-llama", 12)
    assert result["template"]["system"] == "Be brief."
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [(a["prompt"], a["reference"]) for a in answers[:2]] == [
        ("say 0\n", "a"),
        ("say 1\n", "b"),
    ]


def test_shrink_and_inspect_read_them_alike(lorakit, adapter, tmp_path):
    shrunk = tmp_path / "small"
    done = lorakit("adapters", "shrink", "kinds", "--rank", 1, "--data", adapter, "--out", shrunk)
    assert done.code == 0, done.err
    assert SAID in done.out
    assert "held-out loss" in done.out
    done = lorakit("rank", "--inspect", "kinds", "--data", adapter)
    assert done.code == 0, done.err
    assert SAID in done.out
    # What was made of it is asked like its parent.
    done = lorakit("eval", "--adapter", shrunk, "--data", adapter, "--metrics", "none")
    assert done.code == 0, done.err
    assert SAID in done.out


def test_a_combination_of_like_adapters_keeps_the_mapping(lorakit, adapter, tmp_path):
    both = tmp_path / "both"
    done = lorakit("adapters", "combine", "kinds:0.5", "kinds@1:0.5", "--out", both)
    assert done.code == 0, done.err
    done = lorakit("eval", "--adapter", both, "--data", adapter, "--metrics", "none")
    assert done.code == 0, done.err
    assert SAID in done.out


@pytest.mark.parametrize("command", [("eval", "--adapter"), ("rank", "--inspect")])
def test_rows_of_another_form_name_the_record_and_the_way_out(lorakit, adapter, tmp_path, command):
    other = lines(tmp_path / "other.jsonl", [{"prompt": "a", "completion": "b"}])
    done = lorakit(*command, "kinds", "--data", other)
    assert done.code == 2
    assert r"the row has no column 'question', which prompt '{question}\n' reads" in done.err
    assert "known: 'completion', 'prompt'. This mapping is the one that kinds" in done.err
    assert "kinds" in done.err
    asked = ("--prompt", "{prompt}", "--completion", "{completion}")
    done = lorakit(*command, "kinds", "--data", other, *asked)
    assert done.code == 0, done.err
    assert "Rows are mapped: prompt '{prompt}', completion '{completion}'" in done.out


def test_merge_and_export_take_the_recorded_base(lorakit, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = lorakit("merge", "--adapter", "kinds", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    assert (tmp_path / "merged" / "config.json").is_file()
    note = r"prompts were trained as '{question}\n'"
    assert note in done.out
    done = lorakit("export", "kinds", "--to", "vllm", "--out", tmp_path / "vllm")
    assert done.code == 0, done.err
    assert note in done.out
    done = lorakit("export", "kinds", "--to", "gguf", "--out", tmp_path / "kinds.gguf")
    assert done.code == 0, done.err
    assert note in done.out


def test_another_base_that_is_named_is_still_refused(lorakit, adapter, tmp_path, model_folder):
    other = tmp_path / "other-llama"
    tiny("llama", seed=3).save_pretrained(other)
    tokenizer().save_pretrained(other)
    done = lorakit("eval", "--adapter", "kinds", "--data", adapter, "--model", other)
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "kinds@1 was trained on 'tiny-llama', and this base is 'other-llama'" in said
    assert f"--model {model_folder}" in said
    assert said.rstrip().endswith("here)")
