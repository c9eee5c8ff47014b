"""`lorakit adapters add`."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def add(
    folder: Annotated[Path, typer.Argument(help="An adapter folder, lorakit's or peft's.")],
    name: Annotated[str, typer.Argument(help="What to call it; a name that is there goes on.")],
    note: Annotated[str, typer.Option("--note", help="A sentence for the log.")] = "",
    store: StoreFolder = None,
) -> None:
    """Keep a copy of an adapter in the store, as the newest version of a name.

    Every tensor is checked first. `lorakit adapters add runs/first/adapter invoices`
    """
    added = Store(store).add(folder, name, note=note)
    entry = added.entry
    said = {
        "new": f"added {entry} ({entry.version.short})",
        "again": f"{entry} is this adapter already; {entry.name} points at it again",
        "unchanged": f"{entry} is this adapter already; nothing has changed",
    }[added.how]
    left = f"not kept, since no part of an adapter: {', '.join(added.left_out)}"
    say([said, *([left] if added.left_out else [])])


command = add
