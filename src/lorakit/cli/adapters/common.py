"""What the commands about the store share: its option, and an adapter as one line."""

import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len

from lorakit.adapters.measurements import Measurement, headline
from lorakit.adapters.store import Entry, StoreEvent, Summary
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


def store_words(store: Path | None) -> list[object]:
    """The option of a printed command that names the store of the one that prints it."""
    return [] if store is None else ["--store", store]


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


def best(summary: Summary, measured: Sequence[Measurement]) -> str:
    """The score that fits the adapter's task, by name and value; '' where none is known."""
    return str(headline(summary.metrics, summary.headline, measured) or "")


def entry_dict(entry: Entry, measured: Sequence[Measurement] = ()) -> dict[str, Any]:
    """An adapter as the JSON of every command has it.

    measured: its scores that were recorded later, oldest first.
    """
    version, summary = entry.version, entry.version.summary
    shown = headline(summary.metrics, summary.headline, measured)
    return {
        "name": entry.name or None,
        "number": entry.number or None,
        "current": entry.current,
        "id": version.id,
        "added": iso(version.added),
        "folder": str(version.folder),
        "bytes": version.size,
        **summary.to_dict(),
        "headline": None if shown is None else asdict(shown),
        "measured": [one.to_dict() | {"at": iso(one.at)} for one in measured],
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


COLUMNS = ("adapter", "base", "rank", "best measure", "date")
WIDE = ("adapter", "id", "base", "rank", "parameters", "size", "best measure", "date")


def cells(
    entry: Entry, measured: Sequence[Measurement] = (), *, wide: bool = False
) -> tuple[str, ...]:
    """An adapter in the columns of `COLUMNS`, or of `WIDE`.

    The date is the one on which the measure was recorded, else the one on which the adapter was
    added.
    """
    version, summary = entry.version, entry.version.summary
    shown = headline(summary.metrics, summary.headline, measured)
    at = version.added if shown is None or shown.at is None else shown.at
    name, score = str(entry), str(shown or "")
    if not wide:
        return (name, short_base(summary.base_name), ranks(entry), score, when(at)[:10])
    more = (count(summary.parameters), size(version.size))
    return (name, version.short, summary.base_name, ranks(entry), *more, score, when(at))


def short_base(name: str) -> str:
    """What a base is called without its owner or folder.

    >>> short_base("HuggingFaceTB/SmolLM2-135M-Instruct"), short_base("bases/tiny/")
    ('SmolLM2-135M-Instruct', 'tiny')
    """
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def adapters_table(
    entries: Sequence[Entry],
    measured: Mapping[str, Sequence[Measurement]],
    *,
    wide: bool = False,
) -> list[tuple[str, ...]]:
    """Adapters, one a row, the titles first.

    Args:
        entries: the adapters.
        measured: scores that were recorded later, by version.
        wide: with id, whole name of the base, parameters and size as well.
    """
    told = [cells(entry, measured.get(entry.version.id, ()), wide=wide) for entry in entries]
    return [WIDE if wide else COLUMNS, *told]


def write_columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Write rows in columns as wide as their longest cells: one line a row, and nothing is cut.

    Args:
        rows: the titles, if any, first.
        right: columns whose cells stand at the right.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        parts = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            parts.append(space + cell if i in right else cell + space)
        sys.stdout.write("  ".join(parts).rstrip() + "\n")
    sys.stdout.flush()
