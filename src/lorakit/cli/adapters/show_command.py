"""`lorakit adapters show`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from lorakit.adapters.measurements import Measurement, score_name, scores_of
from lorakit.adapters.store import Store, Summary
from lorakit.adapters.store.records import Entry
from lorakit.cli.adapters.common import (
    Json,
    StoreFolder,
    best,
    entry_dict,
    ranks,
    when,
    write_columns,
    write_json,
)
from lorakit.cli.show import say
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
    measured = opened.measurements().get(entry.version.id, ())
    if json:
        content = entry_dict(entry, measured) | {"called": list(opened.called(entry.version))}
        write_json(content | {"layers": [asdict(one) for one in largest], "provenance": record})
        return
    write_columns([*described(entry, opened, record, measured).items()])
    rows = [("module", "norm of ΔW", "largest σ", "rank", "90 % of energy in", "scale")]
    for one in largest[:layers]:
        figures = ("-", "-", "-")
        if one.norm is not None:
            figures = (f"{one.norm:.4g}", f"{one.largest:.4g}", str(one.effective))
        rows.append((one.path, *figures[:2], str(one.rank), figures[2], f"{one.scale:g}"))
    say(["largest layers"])
    write_columns(rows, right=range(1, 6))
    if len(largest) > layers:
        say([f"and {len(largest) - layers} more; --layers {len(largest)} shows all"])


command = show


def described(
    entry: Entry, store: Store, record: dict[str, Any], measured: Sequence[Measurement]
) -> dict[str, str]:
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
        "best measure": best(summary, measured),
        "in training": _trained(summary),
        **{f"recorded {when(one.at)}": _measured(one) for one in measured},
        "made by": str((record.get("method") or {}).get("how") or ""),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        "comes from": "; ".join(lineage(entry, store)),
    }
    return {name: value for name, value in facts.items() if value}


def _trained(summary: Summary) -> str:
    """What the training itself measured, on a few samples."""
    scores = scores_of(summary.metrics, summary.headline)
    told = [f"loss {summary.metrics['eval_loss']:.4f}"] if "eval_loss" in summary.metrics else []
    return ", ".join(
        [*told, *(f"{score_name(name)} {value:.3f}" for name, value in scores.items())]
    )


def _measured(one: Measurement) -> str:
    """Scores that were recorded later, with their intervals, and on which rows."""
    told = []
    for name, value in one.scores.items():
        spread = one.intervals.get(name)
        shown = "" if spread is None else f" ({spread[0]:.3f} to {spread[1]:.3f})"
        told.append(f"{score_name(name)} {value:.3f}{shown}")
    if one.choice_accuracy is not None:
        told.append(f"right label likeliest {one.choice_accuracy:.3f}")
    if one.eval_loss is not None:
        told.append(f"loss {one.eval_loss:.4f}")
    return (
        f"{', '.join(told)}; {count(one.rows)} rows of {', '.join(one.data)} {one.data_sha256[:12]}"
    )


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
