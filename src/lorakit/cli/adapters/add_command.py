"""`lorakit adapters add`."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def add(
    folder: Annotated[Path, typer.Argument(help="An adapter folder (lorakit's or peft's).")],
    name: Annotated[
        str, typer.Argument(help="Its name in the store; an existing name gets a new version.")
    ],
    note: Annotated[
        str, typer.Option("--note", help="A sentence for the log. Default: none.")
    ] = "",
    store: StoreFolder = None,
) -> None:
    """Copy an adapter into the store, as the newest version of a name. Example:

    `lorakit adapters add runs/first/adapter invoices`

    Every tensor is checked first.
    """
    added = Store(store).add(folder, name, note=note)
    entry = added.entry
    outcome = {
        "new": f"added {entry} ({entry.version.short})",
        "again": f"{entry} is this adapter already; {entry.name} points at it again",
        "unchanged": f"{entry} is this adapter already; nothing has changed",
    }[added.how]
    left = f"not copied, because they do not belong to an adapter: {', '.join(added.left_out)}"
    say([outcome, *([left] if added.left_out else [])])


command = add
