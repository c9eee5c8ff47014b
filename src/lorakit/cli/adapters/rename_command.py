"""`lorakit adapters rename`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def rename(
    old: Annotated[str, typer.Argument(help="The present name.")],
    new: Annotated[str, typer.Argument(help="The new name; it must be free.")],
    store: StoreFolder = None,
) -> None:
    """Rename an adapter; its history stays with it. Example:

    `lorakit adapters rename invoices bills`
    """
    say([f"{old} is called {Store(store).rename(old, new)} now"])


command = rename
