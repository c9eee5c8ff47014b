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
        typer.Option(
            "--to",
            metavar="VERSION",
            help="The version to make current: its number, or the first digits of its id; also one "
            "that was removed. Default: the one before the current version.",
        ),
    ] = None,
    store: StoreFolder = None,
) -> None:
    """Make an earlier version of a name current, or restore what was removed. Example:

    `lorakit adapters rollback invoices`

    Nothing is lost: the later version stays in the history, and `--to` can make it current again.
    """
    entry = Store(store).rollback(name, to)
    say([f"{name} is {entry} ({entry.version.short}) now"])


command = rollback
