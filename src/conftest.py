"""What the examples in docstrings find around them: a folder of their own, a tiny model, some rows."""

import json
import os
from pathlib import Path

import pytest

WORDS = ("lamp", "desk", "river", "stone", "cloud", "paper", "window", "garden", "copper", "violet")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of two layers, as the tests have it."""
    from families import saved

    return saved(tmp_path_factory.mktemp("models") / "tiny-model")


@pytest.fixture(autouse=True)
def workplace(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty working folder, cache and store; a model and rows where an example names them."""
    for name in ("LORAKIT_CACHE", "LORAKIT_STORE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    examples = [example.source for example in request.node.dtest.examples]
    if any("tiny-model" in source for source in examples):
        os.symlink(request.getfixturevalue("tiny_model"), "tiny-model")
        rows = ({"prompt": f"say {word}", "completion": word[::-1]} for word in WORDS)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if any("lorakit.rank(" in source or "lorakit.compare(" in source for source in examples):
        from lorakit.experiments import in_process, sources

        # A process a trial takes seconds to import torch; tests/ranking and tests/comparing have those.
        monkeypatch.setattr(
            sources, "processes", lambda root, workers, report: in_process(root, report=report)
        )
