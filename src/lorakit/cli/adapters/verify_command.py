"""`lorakit adapters verify`."""

from typing import Annotated

import typer

from lorakit.adapters.store import Store, verify
from lorakit.cli.adapters.common import Json, StoreFolder, write_json
from lorakit.cli.show import console, say


def verify_store(
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Names or versions; everything without any.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Also hash the bases that are here.")
    ] = True,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Hash every stored file again, check every tensor, and the base where it is at hand.

    Ends with exit code 1 where something is not as it was stored. Bases are looked for under
    the name or path that the adapter records; nothing is fetched.
    """
    from lorakit.run.commands.verifying import BaseCheck

    kept, check = Store(store), BaseCheck()
    asked = adapters or []
    faults = verify(kept, asked, check=check) if base else verify(kept, asked)
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
            console.print("[bold red]fault:[/] ", end="")
            say([str(fault)])
        if base:
            say(f"base {name}: the same" for name in sorted(check.same))
            say(f"base {name}: not compared, {why}" for name, why in check.unknown.items())
        if not faults:
            say([f"{', '.join(asked) or kept.path} is whole"])
    if faults:
        raise typer.Exit(1)


command = verify_store
