"""`lorakit adapters remove`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.adapters.store.references import parse
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def remove(
    adapters: Annotated[list[str], typer.Argument(help="Names, or versions such as invoices@2.")],
    store: StoreFolder = None,
) -> None:
    """Remove names with their history, or single versions.

    The content stays until `lorakit adapters gc` takes it; until then `rollback NAME` brings a
    removed name back.
    """
    kept = Store(store)
    for adapter in adapters:
        entry = kept.remove(adapter)
        if parse(adapter).bare:
            back = f"`lorakit adapters rollback {adapter}` brings it back until gc takes it"
            say([f"removed {adapter} (it was {entry}); {back}"])
        else:
            say([f"removed {entry}"])


command = remove
