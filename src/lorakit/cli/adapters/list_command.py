"""`lorakit adapters list`."""

import fnmatch
import sys
from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import (
    COLUMNS,
    Json,
    StoreFolder,
    adapters_table,
    cells,
    entry_dict,
    write_json,
)
from lorakit.cli.show import console, say

# rich measures every cell of a table; beyond this many rows plain columns are much faster.
MANY = 500


def list_adapters(
    pattern: Annotated[
        str | None,
        typer.Argument(help="List only names that match this pattern, such as 'inv*'."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="List only adapters of the base with this name.")
    ] = None,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """List the names in the store: base, rank, size, and measured loss and scores. Example:

    `lorakit adapters list`
    """
    opened = Store(store)
    entries = [
        entry
        for entry in opened.list()
        if (pattern is None or fnmatch.fnmatchcase(entry.name, pattern))
        and (base is None or entry.version.summary.base_name == base)
    ]
    if json:
        write_json([entry_dict(entry) for entry in entries])
    elif not entries:
        say([f"no adapters in {opened.path}; `lorakit adapters add FOLDER NAME` adds one"])
    elif len(entries) <= MANY:
        console.print(adapters_table(entries))
    else:
        rows = [COLUMNS, *map(cells, entries)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        form = "  ".join(f"{{:{width}}}" for width in widths)
        sys.stdout.write("".join(form.format(*row).rstrip() + "\n" for row in rows))


command = list_adapters
