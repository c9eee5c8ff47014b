"""`lorakit adapters rename`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def rename(
    old: Annotated[str, typer.Argument(help="The name it has.")],
    new: Annotated[str, typer.Argument(help="The name it gets; its history goes with it.")],
    store: StoreFolder = None,
) -> None:
    """Give an adapter another name."""
    say([f"{old} is called {Store(store).rename(old, new)} now"])


command = rename
