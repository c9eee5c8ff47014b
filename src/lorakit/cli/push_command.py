"""`lorakit push`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.options import flatten, with_options
from lorakit.cli.show import say
from lorakit.config import load_config
from lorakit.extras import need
from lorakit.files.wording import size
from lorakit.run.present import require_present

if TYPE_CHECKING:
    from lorakit.adapters.hub import Push

OPTIONS = ("store",)


def push(
    adapter: Annotated[
        str,
        typer.Argument(
            help="An adapter folder, or a name in the store (invoices@3).", show_default=False
        ),
    ],
    repository: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.", show_default=False)
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public instead of private.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace the adapter that the repository holds already."),
    ] = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Upload an adapter to the Hugging Face hub, in one commit; private by default. Example:

    `lorakit push runs/first/adapter OWNER/NAME`

    Only the adapter's own files are uploaded, and its record of the rows it was trained on
    (`trained_rows.safetensors`) where the repository is private. Log in first with `hf auth login`.
    """
    config = load_config(None, flatten(flags))
    need("hub", "`lorakit push`")
    require_present(config, adapter)
    from lorakit.run.commands.sharing import run_push

    address = run_push(
        adapter,
        repository,
        store=config.output.store,
        private=not public,
        force=force,
        report=_say,
    )
    say([f"pushed: {address}"])


def _say(prepared: "Push") -> None:
    seen = "private" if prepared.private else "public"
    state = "new" if prepared.over is None else f"over {prepared.over[:12]}"
    lines = [f"uploading to {prepared.repository} ({seen}, {state}):"]
    say([*lines, *(f"  {name}  {size(count)}" for name, count in prepared.sizes.items())])


command = with_options(push, OPTIONS)
