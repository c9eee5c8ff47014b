"""Rows that somebody holds in Python, as a source that trials in other processes can read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.run import folder as folders

Rows = str | Path | Sequence[Mapping[str, Any]]
"""A file, folder or hub id, or the rows themselves."""


def as_source(rows: Rows, folder: Path, name: str) -> str:
    """The source's name; rows in Python are written beside the folder, as FOLDER.NAME.jsonl."""
    if isinstance(rows, str | Path):
        return str(rows)
    beside = folder.with_name(f"{folder.name}.{name}.jsonl")
    text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    if not beside.is_file() or beside.read_text(encoding="utf-8") != text:
        folders.make_folder(folder.parent)
        folders.write_text(beside, text)
    return str(beside)
