"""Every command that a command prints runs as it is printed: on two bases, in folders with spaces.

Collected from what is printed, from report.html and result.json, and from the card of each adapter.
"""

import html
import json
import re
import shlex
import shutil

import pytest

from families import saved
from lorakit.cli.main import COMMANDS, GROUPS, run
from lorakit.comparing import command as comparing
from lorakit.comparing import general
from lorakit.experiments import experiment, in_process
from lorakit.models import default
from lorakit.serving import server

WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet")
NAMES = "|".join((*COMMANDS, *GROUPS))
# A command goes on to the end of its line, or of its backticks.
COMMAND = re.compile(
    rf"`(lorakit (?:{NAMES})[^`\n]*)`|\b(lorakit (?:{NAMES})\b[^`\n]*)$", re.MULTILINE
)


def printed(text):
    """The commands in a text."""
    return [a or b.strip() for a, b in COMMAND.findall(text)]


def of_page(page):
    """The commands that a page shows: text between tags, and code."""
    return printed(html.unescape(re.sub(r"<[^>]*>", "\n", page)))


def of_values(value):
    """The commands in the texts of a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [line for item in value for line in of_values(item)]
    return printed(value) if isinstance(value, str) else []


def of_folder(folder):
    """The commands of all that a command left: each with the folder that it is to be run in."""
    found = []
    for page in folder.rglob("report.html"):
        found += [(line, None) for line in of_page(page.read_text())]
    for result in folder.rglob("result.json"):
        found += [(line, None) for line in of_values(json.loads(result.read_text()))]
    for card in folder.rglob("adapter/README.md"):
        found += [(line, card.parent) for line in printed(card.read_text())]
    return found


def test_commands_are_found():
    """The collector itself, on the forms in which commands are printed."""
    assert printed("try it:  lorakit generate --adapter 'a b' 'your prompt'\nother") == [
        "lorakit generate --adapter 'a b' 'your prompt'"
    ]
    assert printed("see `lorakit adapters add --help`; lorakit trains") == [
        "lorakit adapters add --help"
    ]
    assert of_page("<pre><code>lorakit train &#39;a b&#39;</code></pre>") == ["lorakit train 'a b'"]
    assert of_values({"a": ["x lorakit rank --resume"]}) == ["lorakit rank --resume"]


@pytest.fixture(params=["llama", "qwen2"])
def work(request, tmp_path, monkeypatch):
    """A folder with a space in its name: a base, rows, and one more column for prompts of two."""
    work = tmp_path / "my work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("LORAKIT_STORE", str(tmp_path / "the store"))
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    for module in (experiment, comparing):  # one process a trial is tested elsewhere
        monkeypatch.setattr(
            module, "processes", lambda root, report, workers=1: in_process(root, report=report)
        )
    monkeypatch.setattr(general, "PROMPTS", general.PROMPTS[:2])
    saved(work / "tiny base", request.param)
    words = [f"{first} {second}" for first in WORDS for second in WORDS[:4]]
    rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    (work / "the rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = "".join(f"{word},{word[::-1]},{word[0]}\n" for word in words)
    (work / "the rows.csv").write_text("word,answer,it's\n" + table)
    return work


@pytest.fixture
def said(capsys):
    """Run a command that has to succeed; what it printed."""

    def call(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        out = capsys.readouterr()
        assert code == 0, f"{shlex.join(map(str, words))}\n{out.out[-2000:]}\n{out.err[-2000:]}"
        return out.out + out.err

    return call


@pytest.fixture
def runs(said, work, monkeypatch):
    """Run each command where it is to be run; a name without arguments is asked for its help."""
    done = []

    def each(found):
        for line, folder in found:
            if (line, folder) in done:
                continue
            done.append((line, folder))
            words = shlex.split(line)[1:]
            names = [words[0], *words[1:2]] if words[0] in GROUPS else words[:1]
            monkeypatch.chdir(folder or work)
            said(*words, *(["--help"] if words == names else []))
            monkeypatch.chdir(work)
        return [line for line, _ in found]

    return each


BASE = ("--model", "tiny base")
SMALL = ("--rank", 2, "--batch-size", 4, "--max-steps", 2, "--samples", 1, "--max-new-tokens", 4)


def test_train_and_what_is_made_of_its_adapter(said, runs, work):
    text = said("train", "--data", "the rows.jsonl", *BASE, "--out", "runs/first try", *SMALL)
    found = [(line, None) for line in printed(text)] + of_folder(work / "runs")
    lines = runs(found)
    assert "lorakit generate --adapter 'runs/first try/adapter' 'your prompt'" in lines
    again = "lorakit train 'runs/first try/config.yaml' --out 'runs/first try-again'"
    assert lines.count(again) >= 2, "on the page and in result.json"
    assert any("export . --to" in line for line in lines)
    said("adapters", "add", "runs/first try/adapter", "mine")
    said("adapters", "add", "runs/first try/adapter", "yours")
    adapter = "runs/first try/adapter"
    for command in (
        ("adapters", "list"),
        ("adapters", "show", "mine"),
        ("adapters", "log", "mine"),
        ("adapters", "diff", "mine", adapter),
        ("adapters", "verify"),
        ("adapters", "combine", "mine:0.5", "yours:0.5", "--out", "both of them"),
        ("adapters", "shrink", "mine", "--rank", 1, "--out", "a smaller one"),
        ("adapters", "gc"),
        ("adapters", "remove", "yours"),
        ("adapters", "list", "--store", "an empty one"),
        ("export", adapter, "--to", "peft", "--out", "for peft"),
        ("export", adapter, "--to", "vllm", "--out", "for vllm"),
        ("export", adapter, "--lint"),
        ("merge", adapter and "--adapter", adapter, "--out", "a merged one"),
        ("eval", "--adapter", adapter, "--data", "the rows.jsonl", "--max-new-tokens", 2),
        ("rank", "--inspect", adapter),
        ("check", "--data", "the rows.jsonl", *BASE),
    ):
        runs([(line, None) for line in printed(said(*command))])


def test_prompts_of_several_columns(said, runs, work):
    """The prompt that is printed is one that the adapter's template takes."""
    mapping = ("--prompt", "{word} ({it's})", "--completion", "{answer}")
    text = said("train", "--data", "the rows.csv", *BASE, *mapping, "--out", "runs/two", *SMALL)
    lines = runs([(line, None) for line in printed(text)] + of_folder(work / "runs"))
    (asked,) = {line for line in lines if line.startswith("lorakit generate")}
    assert json.loads(shlex.split(asked)[-1]).keys() == {"word", "it's"}


def test_several_at_once(said, runs, work):
    text = said(
        *("train", "--data", "the rows.jsonl", *BASE, "--out", "runs/some ranks", *SMALL[2:]),
        *("--ranks", "1,2"),
    )
    lines = runs([(line, None) for line in printed(text)] + of_folder(work / "runs"))
    assert any(line.startswith("lorakit generate") for line in lines)


def test_another_store_is_named(said, runs, work):
    said("train", "--data", "the rows.jsonl", *BASE, "--out", "runs/a", *SMALL)
    elsewhere = ("--store", "another store")
    said("adapters", "add", "runs/a/adapter", "mine", *elsewhere)
    text = said("adapters", "remove", "mine", *elsewhere)
    assert runs([(line, None) for line in printed(text)]) == [
        "lorakit adapters rollback mine --store 'another store'"
    ]
    said("adapters", "show", "mine", *elsewhere)
    text = said("export", "mine", "--lint", *elsewhere)
    runs([(line, None) for line in printed(text)])


def test_a_search(said, runs, work):
    text = said(
        *("rank", "--data", "the rows.jsonl", *BASE, "--out", "runs/a search", "--max-rank", 4),
        *("--epochs", 4),
        *("--eval-data", "the rows.jsonl", "--batch-size", 4),
    )
    found = [(line, None) for line in printed(text)] + of_folder(work / "runs" / "a search")
    shutil.rmtree(work / "runs" / "a search-again", ignore_errors=True)
    lines = runs(found)
    assert any("'runs/a search/config.yaml'" in line for line in lines)


def test_a_comparison(said, runs, work):
    text = said(
        *("compare", "--data", "the rows.jsonl", *BASE, "--out", "runs/two arms", "--ranks", 2),
        *("--seeds", 1, "--rates", 1, "--evaluations", 1, "--samples", 1, "--batch-size", 8),
    )
    found = [(line, None) for line in printed(text)] + of_folder(work / "runs" / "two arms")
    assert any("'runs/two arms/config.yaml'" in line for line in runs(found))


def test_serving_and_the_demo(said, runs, work, monkeypatch):
    said("train", "--data", "the rows.jsonl", *BASE, "--out", "runs/a", *SMALL)
    said("adapters", "add", "runs/a/adapter", "mine")
    monkeypatch.setattr(server, "run", lambda *_: None)
    text = said("serve", "--base", "tiny base", "--port", 0, "--adapters", "mine")
    assert "serving tiny base" in text
    runs([(line, None) for line in printed(text)])
    shutil.copytree(work / "tiny base", default.location())
    config = json.loads((default.location() / "config.json").read_text())
    monkeypatch.setattr(default, "CONFIG", config)
    text = said("demo", "--rows", 8, "--held-out", 2, "--out", "runs/the demo")
    lines = runs([(line, None) for line in printed(text)] + of_folder(work / "runs" / "the demo"))
    assert any(line.startswith("lorakit generate") for line in lines)
