"""A tiny base, rows that one rank or many need, and searches done in this process."""

import json
import random
from pathlib import Path

import pytest

from families import saved
from lorakit.experiments import in_process
from lorakit.ranking.command import run_rank
from lorakit.ranking.spec import FORM

WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet"]


def write(file: Path, pairs) -> Path:
    lines = [json.dumps({"prompt": a, "completion": b}) for a, b in pairs]
    file.write_text("".join(line + "\n" for line in lines))
    return file


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def easy(tmp_path_factory) -> Path:
    """Rows that are all answered alike: any rank will do."""
    pairs = [(f"say {a} {b}", "yes") for a in WORDS for b in WORDS]
    return write(tmp_path_factory.mktemp("rows") / "easy.jsonl", pairs)


@pytest.fixture(scope="session")
def keys(tmp_path_factory) -> Path:
    """Random keys to random values, to be learnt by heart: what is held out is what is trained."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = {
        "".join(draw.choices(letters, k=4)): "".join(draw.choices(letters, k=3)) for _ in range(80)
    }
    return write(tmp_path_factory.mktemp("rows") / "keys.jsonl", found.items())


@pytest.fixture(scope="session")
def small(base):
    """Options of a search that takes seconds."""
    return {
        "model": str(base),
        "dtype": "float32",
        "template": "raw",
        "max_rank": 8,
        "max_steps": 16,
        "batch_size": 8,
        "learning_rate": 0.005,
        "tolerance": "2%",
        "allow_short": True,
        "samples": 3,
        "max_new_tokens": 4,
    }


@pytest.fixture(scope="session")
def search():
    """Run a search in this process and give its result."""

    def call(out: Path, options, report=lambda event: None):
        return run_rank(
            FORM.read(None, {**options, "out": str(out)}),
            command="lorakit rank --data rows.jsonl",
            report=report,
            runner=lambda root, tell: in_process(root, report=tell),
        )

    return call
