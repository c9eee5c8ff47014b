"""`lorakit pull`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lorakit.cli.adapters.combine_command import Name, Out
from lorakit.cli.options import flatten, with_options
from lorakit.cli.show import say
from lorakit.config import load_config

OPTIONS = ("revision", "store")


def pull(
    repository: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.", show_default=False)
    ],
    name: Name = None,
    out: Out = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Download an adapter from the Hugging Face hub and check every file's hash. Example:

    `lorakit pull OWNER/NAME --name invoices`

    Only the files of an adapter are downloaded: safetensors, JSON and text, which cannot run code.
    """
    from lorakit.run.commands.sharing import run_pull

    config = load_config(None, flatten(flags))
    pulled, place = run_pull(
        repository,
        revision=config.model.revision,
        out=out,
        name=name,
        store=config.output.store,
    )
    lines = [f"not downloaded: {', '.join(pulled.left)}"] if pulled.left else []
    say([*lines, f"pulled {repository} at {pulled.commit[:12]}: {place}"])


command = with_options(pull, OPTIONS)
