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
    """Fetch an adapter from the Hugging Face hub, every file held against its hash.

    Only the files of an adapter are fetched: safetensors, JSON and text, nothing that could run.
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
    lines = [f"left there: {', '.join(pulled.left)}"] if pulled.left else []
    say([*lines, f"pulled {repository} at {pulled.commit[:12]}: {place}"])


command = with_options(pull, OPTIONS)
