"""`lorakit adapters list`."""

import fnmatch
from typing import Annotated

import typer

from lorakit.adapters.store import Entry, Store
from lorakit.cli.adapters.common import (
    Json,
    StoreFolder,
    adapters_table,
    entry_dict,
    short_base,
    write_columns,
    write_json,
)
from lorakit.cli.show import say


def list_adapters(
    pattern: Annotated[
        str | None,
        typer.Argument(help="List only names that match this pattern, such as 'inv*'."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="List only adapters of the base with this name.")
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Also show the id, the parameters and the size.")
    ] = False,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """List the names in the store: base, rank, and the score that fits the task best. Example:

    `lorakit adapters list`

    Scores are those that `lorakit eval --record` kept last, else those of the adapter's own
    training. Each is a share of the best possible, from 0 to 1.
    """
    opened = Store(store)
    entries = [
        entry
        for entry in opened.list()
        if (pattern is None or fnmatch.fnmatchcase(entry.name, pattern))
        and (base is None or base in _called(entry))
    ]
    measured = opened.measurements()
    if json:
        write_json([entry_dict(entry, measured.get(entry.version.id, ())) for entry in entries])
    elif not entries:
        say([f"no adapters in {opened.path}; `lorakit adapters add --help` says how one is added"])
    else:
        write_columns(adapters_table(entries, measured, wide=wide), right=(4, 5) if wide else ())


command = list_adapters


def _called(entry: Entry) -> tuple[str, str]:
    """The base of an adapter, by its whole name and as it is listed."""
    name = entry.version.summary.base_name
    return name, short_base(name)
