"""`lorakit adapters remove`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.adapters.store.references import parse
from lorakit.cli.adapters.common import StoreFolder, store_words
from lorakit.cli.show import say
from lorakit.files.wording import command_line


def remove(
    adapters: Annotated[list[str], typer.Argument(help="Names, or versions such as invoices@2.")],
    store: StoreFolder = None,
) -> None:
    """Remove names with their history, or single versions. Example:

    `lorakit adapters remove invoices@1`

    The files stay until `lorakit adapters gc` deletes them; until then `rollback NAME` restores a
    removed name, and `rollback NAME --to 1` a removed version.
    """
    opened = Store(store)
    for adapter in adapters:
        entry = opened.remove(adapter)
        if parse(adapter).bare:
            line = command_line("adapters", "rollback", adapter, *store_words(store))
            back = f"`{line}` restores it until gc deletes it"
            say([f"removed {adapter} (it was {entry}); {back}"])
        else:
            back = f"`lorakit adapters rollback {entry.name} --to {entry.number}`"
            say([f"removed {entry}; {back} restores it and makes it current until gc deletes it"])


command = remove
