"""What the commands about the store share: its option, and an adapter as one line."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.adapters.store import Entry, StoreEvent
from lorakit.adapters.store.default import STORE_HELP
from lorakit.files.wording import count, size

StoreFolder = Annotated[Path | None, typer.Option("--store", metavar="DIR", help=STORE_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def when(at: float) -> str:
    """A moment, in the user's own time: 2026-03-01 14:05."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def iso(at: float) -> str:
    """A moment for machines, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def write_json(content: Any) -> None:
    """JSON on standard output: an object indented, a list with one element a line."""
    if not isinstance(content, list):
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    lines = ",\n ".join(json.dumps(one, ensure_ascii=False) for one in content)
    sys.stdout.write(f"[{lines}]\n")


def ranks(entry: Entry) -> str:
    """8, or 4-16 where they differ."""
    low, high = entry.version.summary.ranks
    return str(low) if low == high else f"{low}-{high}"


def score(metrics: Mapping[str, float]) -> str:
    """Held-out loss and up to two scores."""
    loss = [f"loss {metrics['eval_loss']:.4f}"] if "eval_loss" in metrics else []
    scores = [f"{k.removeprefix('scores.')} {v:.3f}" for k, v in metrics.items() if "scores." in k]
    return ", ".join([*loss, *scores[:2]])


def entry_dict(entry: Entry) -> dict[str, Any]:
    """An adapter as the JSON of every command has it."""
    version = entry.version
    return {
        "name": entry.name or None,
        "number": entry.number or None,
        "current": entry.current,
        "id": version.id,
        "added": iso(version.added),
        "folder": str(version.folder),
        "bytes": version.size,
        **version.summary.to_dict(),
    }


def event_dict(event: StoreEvent) -> dict[str, Any]:
    """One line of the log as JSON."""
    return {
        "at": iso(event.at),
        "name": event.name,
        "action": event.action,
        "number": event.number,
        "id": event.version,
        "note": event.note,
    }


COLUMNS = ("adapter", "id", "base", "rank", "parameters", "size", "added", "measured")


def cells(entry: Entry) -> tuple[str, ...]:
    """An adapter in the columns of `COLUMNS`."""
    version, summary = entry.version, entry.version.summary
    return (
        str(entry),
        version.short,
        summary.base_name,
        ranks(entry),
        count(summary.parameters),
        size(version.size),
        when(version.added),
        score(summary.metrics),
    )


def adapters_table(entries: Sequence[Entry]) -> Table:
    """Adapters, one a row."""
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("parameters", "size") else "left")
    for entry in entries:
        table.add_row(*cells(entry))
    return table
