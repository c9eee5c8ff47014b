"""A tiny base, rows that can be learnt, and comparisons done in this process."""

import json
from pathlib import Path

import pytest

from families import saved
from lorakit.comparing.command import run_compare
from lorakit.comparing.spec import FORM
from lorakit.experiments import in_process

WORDS = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet"]


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [{"prompt": f"say {a} {b}", "completion": b} for a in WORDS for b in WORDS]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


@pytest.fixture(scope="session")
def small(base, rows):
    """Options of a comparison that takes seconds."""
    return {
        "model": str(base),
        "data": (str(rows),),
        "dtype": "float32",
        "ranks": (2,),
        "budget": "4 steps",
        "batch_size": 4,
        "rates": 1,
        "seeds": 2,
        "evaluations": 2,
        "eval_share": 0.2,
        "max_eval_rows": 14,
        "samples": 3,
        "max_new_tokens": 4,
    }


@pytest.fixture(scope="session")
def compare():
    """Run a comparison in this process and give its result."""

    def call(out: Path, options, *, arms=None, report=lambda event: None):
        given = FORM.read(None, {**options, "out": str(out)})
        return run_compare(
            given,
            command="lorakit compare",
            report=report,
            arms=arms,
            runner=lambda root, tell: in_process(root, report=tell),
        )

    return call
