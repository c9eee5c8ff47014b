"""Names of rows, files, columns, splits and adapters are printed as they are: no markup, no emoji."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

import lorakit.cli
from families import saved

CLI = Path(lorakit.cli.__file__).parent
SOURCES = {str(path.relative_to(CLI)): path.read_text() for path in sorted(CLI.rglob("*.py"))}
# A name that rich would colour, turn into an emoji, or read as Markdown or HTML.
NAME = "[red]x:fire:*y*<b>_z_[/]"
FILE = NAME.replace("/", "|")


def calls(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def name_of(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("file", SOURCES)
def test_only_fixed_texts_have_markup(file):
    """The one place that reads markup takes fixed texts and figures, never a name."""
    for call in calls(SOURCES[file]):
        name = name_of(call)
        if file != "show.py":
            assert name not in ("Console", "from_markup", "Markdown", "print_json"), call.lineno
        if name == "TextColumn":
            assert any(k.arg == "markup" for k in call.keywords), call.lineno
        if name == "Panel":  # rich reads a panel's title as markup, whatever its console does
            titles = [k.value for k in call.keywords if k.arg in ("title", "subtitle")]
            assert all(isinstance(title, ast.Constant) for title in titles), call.lineno
        if name == "print":
            assert not any(k.arg in ("markup", "emoji") for k in call.keywords), call.lineno
            texts = [
                ast.unparse(argument)
                for argument in call.args
                if "styled" not in ast.unparse(argument)
            ]
            assert not re.search(r"\[/?(bold|dim|red|green|yellow|cyan|italic)?\]", " ".join(texts))


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder where everything is called so."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved(tmp_path / "tiny"), tmp_path / FILE)
    rows = [{NAME: f"say {i}", "answer": str(i), ":id:": "1"} for i in range(8)]
    (tmp_path / f"{FILE}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_whole_run(lorakit, odd):
    flags = ("--data", f"{FILE}.jsonl", "--model", FILE, "--out", f"runs/{FILE}", "--rank", 2)
    flags += (
        "--prompt",
        f"{{{NAME}}}",
        "--completion",
        "{answer}",
        "--max-steps",
        1,
        "--samples",
        0,
    )
    checked = lorakit("check", *flags)
    assert checked.code == 0, checked.err
    assert f"{FILE}.jsonl:1" in checked.out
    assert ":id:" in checked.out
    trained = lorakit("train", *flags)
    assert trained.code == 0, trained.err
    assert f"runs/{FILE}/adapter" in trained.out
    note = lorakit("adapters", "add", f"runs/{FILE}/adapter", "mine", "--note", NAME)
    assert note.code == 0, note.err
    assert NAME in lorakit("adapters", "log", "mine").out
    shown = lorakit("adapters", "show", "mine")
    assert FILE in shown.out, shown.out
    assert FILE in lorakit("adapters", "list").out
    different = lorakit("adapters", "diff", f"runs/{FILE}/adapter", f"runs/{FILE}/adapter")
    assert f"runs/{FILE}/adapter" in different.out
    fault = lorakit("adapters", "verify", "mine")
    assert fault.code == 0


@pytest.mark.parametrize(
    "line",
    [
        ["train", "--data", f"{NAME}.jsonl"],
        ["train", "--data", "id:train:none:more"],
        ["generate", "--adapter", f"./{FILE}", "hello"],
        ["train", f"{FILE}.yaml"],
        ["adapters", "show", FILE],
        ["train", "--rank", FILE],
        [FILE],
        ["train", f"--{FILE}"],
        ["adapters", FILE],
    ],
    ids=lambda line: " ".join(line)[:20],
)
def test_an_error(lorakit, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "store"))
    outcome = lorakit(*line)
    assert outcome.code == 2
    assert max(line, key=len).lstrip("-./") in outcome.err.replace("\\'", "'")


def test_a_prompt_of_several_and_a_note(lorakit, odd):
    outcome = lorakit("generate", "--model", FILE, "--max-new-tokens", 1, NAME, ":train:")
    assert outcome.code == 0, outcome.err
    assert f"[1] {NAME}" in outcome.out
    assert "[2] :train:" in outcome.out
