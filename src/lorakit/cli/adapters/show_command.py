"""`lorakit adapters show`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lorakit.adapters.store import Store
from lorakit.adapters.store.records import Entry
from lorakit.cli.adapters.common import (
    Json,
    StoreFolder,
    entry_dict,
    ranks,
    score,
    when,
    write_json,
)
from lorakit.cli.show import console, say
from lorakit.files.wording import count, size


def show(
    adapter: Annotated[str, typer.Argument(help="A name, or a version such as invoices@2.")],
    layers: Annotated[
        int, typer.Option("--layers", help="Number of layers to show, the largest changes first.")
    ] = 8,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Show an adapter: where it comes from, its measured loss, and the layers it changes most.

    `lorakit adapters show invoices`

    The change of a layer is measured by the Frobenius norm of ΔW = s·B·A.
    """
    opened = Store(store)
    entry = opened.checked(adapter)
    from lorakit.adapters.differences import sizes
    from lorakit.adapters.pairs import read_stored

    stored = read_stored(entry.folder)
    largest = sizes(stored)
    record = (stored.record.provenance if stored.record else None) or {}
    if json:
        content = entry_dict(entry) | {"called": list(opened.called(entry.version))}
        write_json(content | {"layers": [asdict(one) for one in largest], "provenance": record})
        return
    facts = Table(box=None, pad_edge=False, show_header=False)
    for name, value in described(entry, opened, record).items():
        facts.add_row(Text(name, style="bold"), value)
    console.print(facts)
    table = Table(box=None, pad_edge=False, title="largest layers", title_justify="left")
    for name in ("module", "norm of ΔW", "largest σ", "rank", "90 % of energy in", "scale"):
        table.add_column(name, justify="left" if name == "module" else "right")
    for one in largest[:layers]:
        measured = ("-", "-", "-")
        if one.norm is not None:
            measured = (f"{one.norm:.4g}", f"{one.largest:.4g}", str(one.effective))
        table.add_row(one.path, *measured[:2], str(one.rank), measured[2], f"{one.scale:g}")
    console.print(table)
    if len(largest) > layers:
        say([f"and {len(largest) - layers} more; --layers {len(largest)} shows all"])


command = show


def described(entry: Entry, store: Store, record: dict[str, Any]) -> dict[str, str]:
    """Facts about an adapter, named, as a person reads them."""
    version, summary = entry.version, entry.version.summary
    run = record.get("config") or {}
    data = ", ".join(run.get("data") or ())
    facts = {
        "adapter": f"{entry}" + ("" if entry.current or not entry.name else " (not the current)"),
        "also called": ", ".join(c for c in store.called(version) if c != str(entry)),
        "id": version.id,
        "added": when(version.added),
        "folder": str(version.folder),
        "base": f"{summary.base_name} {str(summary.base.get('weights_sha256') or '')[:12]}".strip(),
        "rank": f"{ranks(entry)} on {summary.modules} modules, {count(summary.parameters)} "
        f"parameters, {size(version.size)}",
        "rows": f"{data} {(summary.data_sha256 or '')[:12]}".strip(),
        "template": str((record.get("template") or {}).get("kind") or ""),
        "measured": score(summary.metrics),
        "made by": str((record.get("method") or {}).get("how") or ""),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        "comes from": "; ".join(lineage(entry, store)),
    }
    return {name: value for name, value in facts.items() if value}


def lineage(entry: Entry, store: Store) -> list[str]:
    """The parents of an adapter and theirs, as far as they are in the store."""
    lines, waiting, seen = [], [entry.version], {entry.version.id}
    while waiting:
        for record, here in store.parents(waiting.pop(0)):
            id = str(record.get("content_sha256") or record.get("tensors_sha256") or "")
            weight = f" · {record['weight']:g}" if "weight" in record else ""
            if here is None:
                lines.append(f"{record.get('name')} {id[:12]}{weight} (not in the store)")
                continue
            now = ", ".join(store.called(here)) or str(record.get("name"))
            lines.append(f"{now} {here.short}{weight}")
            if here.id not in seen:
                seen.add(here.id)
                waiting.append(here)
    return lines
