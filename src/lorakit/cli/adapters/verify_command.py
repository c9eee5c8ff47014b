"""`lorakit adapters verify`."""

from typing import Annotated

import typer
from rich.text import Text

from lorakit.adapters.store import Store, verify
from lorakit.cli.adapters.common import Json, StoreFolder, write_json
from lorakit.cli.show import console, say


def verify_store(
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Names or versions. Default: the whole store.")
    ] = None,
    base: Annotated[
        bool,
        typer.Option(
            "--base/--no-base", help="Also hash the base models that are on this machine."
        ),
    ] = True,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Check every stored file against its hash, every tensor, and the bases. Example:

    `lorakit adapters verify invoices`

    The exit code is 1 where something is not as it was stored. A base is looked up under the name
    or path that the adapter records; nothing is downloaded.
    """
    opened, names = Store(store), adapters or []
    for name in names:
        opened.resolve(name)
    from lorakit.run.commands.verifying import BaseCheck

    check = BaseCheck()
    faults = verify(opened, names, check=check) if base else verify(opened, names)
    if json:
        write_json(
            {
                "whole": not faults,
                "faults": [{"where": fault.where, "what": fault.what} for fault in faults],
                "bases_unchanged": sorted(check.same),
                "bases_not_compared": check.unknown,
            }
        )
    else:
        for fault in faults:
            console.print(Text.assemble(("fault:", "bold red"), " ", str(fault)), soft_wrap=True)
        if base:
            say(f"base {name}: the same" for name in sorted(check.same))
            say(f"base {name}: not compared, {why}" for name, why in check.unknown.items())
        if not faults:
            say([f"{', '.join(names) or opened.path} is whole"])
    if faults:
        raise typer.Exit(1)


command = verify_store
