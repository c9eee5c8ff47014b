"""`lorakit adapters log`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import (
    Json,
    StoreFolder,
    event_dict,
    when,
    write_columns,
    write_json,
)
from lorakit.cli.show import say


def log(
    name: Annotated[
        str | None, typer.Argument(help="A name, also a removed one. Default: all names.")
    ] = None,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Show the history of a name: versions added, rolled back, renamed, removed. Example:

    `lorakit adapters log invoices`

    Where a version continues the training of another adapter, the log says which.
    """
    opened = Store(store)
    events = opened.log(name)
    if json:
        write_json([event_dict(event) for event in events])
        return
    if not events:
        say([f"the history in {opened.path} is empty"])
        return
    rows = [("when", "adapter", "what", "id", "")]
    for event in events:
        number = f"@{event.number}" if event.number else ""
        id = (event.version or "")[:12]
        rows.append((when(event.at), event.name + number, event.action, id, event.note))
    write_columns(rows)


command = log
