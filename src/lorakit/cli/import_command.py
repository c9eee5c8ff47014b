"""`lorakit import`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorakit.cli.adapters.combine_command import Name, Out
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.run.present import require_present

OPTIONS = ("revision", "trust_remote_code", "ignore_adapter", "store")


def import_adapter(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .pt file of loralib, or an adapter folder of mlx-lm.", show_default=False
        ),
    ],
    base: Annotated[str, typer.Option("--base", help="The model that the adapter was trained on.")],
    form: Annotated[
        Literal["auto", "loralib", "mlx"],
        typer.Option(
            "--format", help="The library that wrote it; auto decides by the name of the file."
        ),
    ] = "auto",
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", help="loralib's lora_alpha, which its file does not contain. Needed for .pt."
        ),
    ] = None,
    enable_lora: Annotated[
        str | None,
        typer.Option(
            "--enable-lora",
            metavar="1,0,1",
            help="loralib's enable_lora, where only some parts of a layer are adapted: 1 or 0 for "
            "each part. Default: all parts.",
        ),
    ] = None,
    name: Name = None,
    out: Out = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Convert an adapter that loralib or mlx-lm wrote into peft's format. Example:

    `lorakit import lora.pt --base gpt2-folder --alpha 32 --out imported`

    A .pt file is opened by torch's weights-only reader, which cannot run code.
    """
    config = load_config(None, flatten({**flags, "model": base}))
    if not file.exists():
        raise ConfigError(f"there is no file or folder {file}")
    require_present(config)
    from lorakit.run.commands.importing import run_import
    from lorakit.run.commands.shaping import Output

    with fetching() as progress:
        count, place, notes = run_import(
            config,
            file=file,
            form=form,
            output=Output(out, name, config.output.store),
            alpha=alpha,
            parts=None if enable_lora is None else _parts(enable_lora),
            progress=progress,
        )
    say([*notes, f"{count} pairs imported from {file}: {place}"])


def _parts(text: str) -> list[bool]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not set(pieces) <= {"0", "1"}:
        raise ConfigError(f"--enable-lora is {text!r}; it must be ones and zeros, such as 1,0,1")
    return [piece == "1" for piece in pieces]


command = with_options(import_adapter, OPTIONS)
