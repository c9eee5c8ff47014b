"""`lorakit adapters rollback`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store
from lorakit.cli.adapters.common import StoreFolder
from lorakit.cli.show import say


def rollback(
    name: Annotated[str, typer.Argument(help="A name; also one that was removed.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="A number or the start of an id."),
    ] = None,
    store: StoreFolder = None,
) -> None:
    """Let a name point at an earlier version, or bring a removed name back.

    Without `--to` it is the version before the current one. Nothing is lost: the later version
    stays in the history, and `--to` goes forward too.
    """
    entry = Store(store).rollback(name, to)
    say([f"{name} is {entry} ({entry.version.short}) now"])


command = rollback
