"""`lorakit generate --data`, as typed: what is said, what is refused, and the advice, tried."""

import json
import re
import shlex

import pytest

from lorakit.serving.answering import kept

SHORT = ("--max-new-tokens", 3)


@pytest.fixture
def ask(lorakit, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        return lorakit("generate", "--model", model_folder, *SHORT, *flags)

    return call


@pytest.fixture
def table(tmp_path):
    words = ("lamp", "desk", "river")
    lines = "".join(f"{i},say {word}\n" for i, word in enumerate(words))
    (tmp_path / "asked.csv").write_text("id,question\n" + lines)
    return "asked.csv"


def test_what_became_of_the_rows_is_said(ask, table):
    ran = ask("--data", table, "--prompt", "{question}", "--out", "a.csv")
    assert ran.code == 0, ran.err
    assert "of 3 answers reached the limit of 3 tokens, row " in ran.out
    assert re.search(r"3 rows in .* rows/s", ran.out)
    assert "written: a.csv" in ran.out
    again = ask("--data", table, "--prompt", "{question}", "--out", "a.csv", "--resume")
    assert (again.code, again.out) == (0, "a.csv is finished: nothing to do\n")


def test_the_advice_for_unknown_columns_works(ask, table):
    ran = ask("--data", table, "--out", "a.csv")
    assert ran.code == 2
    assert "asked.csv:2" in ran.err
    advice = re.search(r"for example (--prompt '\S+')", ran.err)[1]
    ran = ask("--data", table, "--out", "a.csv", *shlex.split(advice))
    assert ran.code == 0, ran.err


def test_a_name_that_is_taken_is_answered_with_one_that_works(ask, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b", "generated": 1}\n')
    ran = ask("--data", "rows.jsonl", "--out", "a.jsonl")
    assert ran.code == 2
    advice = re.search(r"for example (--answer-column \S+)", ran.err)[1]
    ran = ask("--data", "rows.jsonl", "--out", "a.jsonl", *advice.split())
    assert ran.code == 0, ran.err
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert (row["answer"], row["generated"]) == ("b", 1)


def test_ctrl_c_says_how_to_go_on(ask, table, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    flags = ("--data", table, "--prompt", "{question}", "--out", "a b.csv")
    with monkeypatch.context() as patch:
        patch.setattr(kept, "append", stop)
        patch.setattr("sys.argv", ["lorakit", "generate", *flags])
        ran = ask(*flags)
    assert ran.code != 0
    assert ran.err.strip().endswith(
        "lorakit generate --data asked.csv --prompt '{question}' --out 'a b.csv' --resume"
    )
    assert ask(*flags).code == 2
    ran = ask(*flags, "--resume")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--out", "a.csv", "hello"), "--out is for the rows of a file: give --data FILE"),
        (("--choices", "a,b", "hello"), "--choices is for the rows of a file"),
        (("--max-rows", "3", "hello"), "--max-rows is for the rows of a file"),
        (("--data", "asked.csv", "--out", "a.csv", "hello"), "a prompt ('hello') and --data"),
        (("--data", "asked.csv"), "say where the answers go: --out"),
        (("--data", "asked.csv", "--out", "a.xlsx"), "'.xlsx' names no format"),
        (("--data", "askd.csv", "--out", "a.csv"), "did you mean 'asked.csv'?"),
        (
            ("--data", "asked.csv", "--out", "a.csv", "--bad-rows", "skip"),
            "must be 'stop' or 'mark'",
        ),
        (("--data", "asked.csv", "--out", "a.csv", "--choices", "a,a"), "names 'a' twice"),
        (("--data", "asked.csv", "--out", "a.csv", "--set", "x=1"), "--set is for a prompt"),
        (("--data", "asked.csv", "--out", "asked.csv", "--prompt", "{question}"), "exists"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(ask, table, flags, why, tmp_path):
    before = (tmp_path / "asked.csv").read_bytes()
    ran = ask(*flags)
    assert ran.code == 2
    assert why in ran.err
    assert ran.err.count("error:") == 1
    assert (tmp_path / "asked.csv").read_bytes() == before


def test_labels_have_their_own_end(ask, table):
    ran = ask("--data", table, "--out", "a.jsonl", "--prompt", "{question}", "--choices", "a,b")
    assert ran.code == 2
    assert "--max-new-tokens has no use with --choices" in ran.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--top-k", 5), "--top-k has no effect"),
        (("--top-p", 0.5, "--seed", 3), "--top-p and --seed have no effect"),
    ],
)
def test_options_of_sampling_without_a_temperature_do_nothing_and_that_is_said(
    ask, table, flags, said
):
    assert said in ask("hello", *flags).err
    of_file = ask("--data", table, "--prompt", "{question}", "--out", "a.csv", *flags)
    assert said in of_file.err
    assert said not in ask("hello", *flags, "--temperature", 0.5).err
