"""A warm process for the whole session, and a tiny model that every command reads."""

import json
import shutil
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


@pytest.fixture(params=["kill", "fail"])
def how(request) -> str:
    """The fault: the process is killed, or the disk is full."""
    return request.param


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A tiny model and a file of rows."""
    folder = tmp_path_factory.mktemp("inputs")
    saved(folder / "model")
    words = ["lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden"]
    lines = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def trained(inputs, warm, tmp_path_factory) -> Path:
    """The same with an adapter, which is in a store as well."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    train = ("train", "--model", "model", "--data", "rows.jsonl", "--out", "run", "--rank", "2")
    ran = warm.run((*train, "--max-steps", "1", "--samples", "1"), folder, without=["matplotlib"])
    assert ran.code == 0, ran.err
    (folder / "run" / "adapter").rename(folder / "adapter")
    shutil.rmtree(folder / "run")
    shutil.copytree(folder / "adapter", folder / "other")
    record = folder / "other" / "README.md"
    record.write_text(record.read_text() + "\nAnother adapter: other bytes.\n")
    ran = warm.run(("adapters", "add", "other", "letters", "--store", "store"), folder)
    assert ran.code == 0, ran.err
    return folder
