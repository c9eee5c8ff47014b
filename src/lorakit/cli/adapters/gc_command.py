"""`lorakit adapters gc`."""

import re
from typing import Annotated

import typer

from lorakit.adapters.store import Store, collect
from lorakit.cli.adapters.common import Json, StoreFolder, write_json
from lorakit.cli.show import say
from lorakit.errors import ConfigError
from lorakit.files.wording import size

_UNITS = {"": 86_400.0, "w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


def gc(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Delete only what was removed longer ago than this: 14d, 12h, or 0 for everything "
            "that is free.",
        ),
    ] = "14d",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be deleted, and delete nothing.")
    ] = False,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Delete versions that no name needs, and leftovers of killed processes. Example:

    `lorakit adapters gc --dry-run`

    A version's files are needed while any name has it in its history, even as an earlier version.
    They are free once each such name, or that version of it, has been removed.
    """
    done = collect(Store(store), older_than=age(older_than), dry_run=dry_run)
    if json:
        write_json(
            {
                "dry_run": dry_run,
                "versions": [version.id for version in done.versions],
                "bytes": done.size,
                "leftovers": list(done.leftovers),
            }
        )
        return
    verb = "would remove" if dry_run else "removed"
    say(
        [
            *(f"  {v.short}  {v.summary.base_name}  {size(v.size)}" for v in done.versions),
            *(f"  {leftover}" for leftover in done.leftovers),
            f"{verb} {len(done.versions)} adapters ({size(done.size)}) and "
            f"{len(done.leftovers)} leftovers",
        ]
    )


command = gc


def age(text: str) -> float:
    """Seconds of '14d', '12h', '90m', '30s', '2w'; a number alone is days.

    >>> age("2d"), age("0")
    (172800.0, 0.0)

    Raises:
        ConfigError: it is of no such form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([wdhms]?)", text.strip())
    if not match:
        raise ConfigError(f"--older-than is {text!r}; write an age such as 14d, 12h or 0")
    return float(match[1]) * _UNITS[match[2]]
