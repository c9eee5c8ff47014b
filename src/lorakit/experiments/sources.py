"""Rows that somebody holds in Python, as options of an experiment whose trials are processes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.files.whole import write_text
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
        write_text(beside, text)
    return str(beside)


def asked(
    data: Rows, eval_data: Rows | None, out: str | Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an experiment that is called from Python: begun, or gone on with.

    Args:
        data, eval_data: rows in any form.
        out: the experiment's folder.
        options: the others.

    Raises:
        OutputError: the folder holds something else.
    """
    folder = Path(out)
    resume = (folder / folders.CONFIG).is_file()
    if not resume:
        folders.check_folder(folder, resume=False)
    sources = {"data": (as_source(data, folder, "rows"),)}
    if eval_data is not None:
        sources["eval_data"] = (as_source(eval_data, folder, "held-out"),)
    return {**options, **sources, "out": str(out), "resume": resume}


def call(name: str, options: Mapping[str, Any]) -> str:
    """How to repeat a call, for a page: the rows are left out.

    >>> call("lorakit.rank", {"max_rank": 8})
    'lorakit.rank(max_rank=8)'
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
