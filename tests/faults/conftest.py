"""A warm process for the whole session, and a tiny model that every command reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Warm

from families import saved


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A tiny model and a file of rows."""
    folder = tmp_path_factory.mktemp("inputs")
    saved(folder / "model")
    words = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden"]
    lines = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
