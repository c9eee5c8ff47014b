"""Adapter folders for the store's tests that need no torch: one byte string stands for tensors."""

import json
from pathlib import Path

from lorakit.adapters.store import Summary


def make_folder(folder: Path, content: str, **more: object) -> Path:
    """A folder with the file names of an adapter, told from others by `content`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_text(content * 50)
    (folder / "adapter_config.json").write_text(json.dumps({"content": content, **more}))
    return folder


def describe(folder: Path) -> Summary:
    """Reads what `make_folder` wrote, and refuses what it did not."""
    said = json.loads((folder / "adapter_config.json").read_text())
    assert (folder / "adapter_model.safetensors").read_text() == said["content"] * 50
    return Summary(2, (4, 8), 100, {"name": "base"}, metrics={"eval_loss": 1.0})
