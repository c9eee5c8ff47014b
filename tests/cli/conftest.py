"""A tiny model folder, a file of rows, and the command line in this process."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from families import saved
from lorakit.cli.main import run


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def rows_file(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet"]


@pytest.fixture
def lorakit(capfd):
    """Run one command line; nothing it prints is lost."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        said = capfd.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture
def train(lorakit, model_folder, rows_file, tmp_path):
    """`lorakit train` on the tiny model, with further flags."""

    def call(*flags: object, out: Path | None = None, data: Path | None = None) -> Outcome:
        return lorakit(
            *("train", "--model", model_folder, "--data", data or rows_file),
            *("--out", out or tmp_path / "run", "--max-new-tokens", 8, "--samples", 2),
            *("--rank", 2, "--batch-size", 4, "--max-steps", 4),
            *flags,
        )

    return call
