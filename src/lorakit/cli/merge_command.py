"""`lorakit merge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import load_config

OPTIONS = ("model", "revision", "device", "trust_remote_code")


def merge(
    adapter: Annotated[Path, typer.Option("--adapter", help="The adapter folder to fold in.")],
    out: Annotated[Path, typer.Option("--out", help="The new model folder; it must be empty.")],
    dtype: Annotated[
        Literal["base", "float32", "bfloat16", "float16"],
        typer.Option(
            "--dtype",
            help="Number format of the merged weights; 'base' is the one it computes in here.",
        ),
    ] = "base",
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Fold an adapter into its base: an ordinary model folder that transformers alone loads.

    W + s·B·A is added in float32 and rounded once. `certificate.json` in the folder says how far
    the merged model's logits are from the adapter's; above the tolerance nothing is written.
    """
    from lorakit.run.merging import run_merge

    config = load_config(None, flatten(flags))
    with fetching() as progress:
        certificate = run_merge(
            config, adapter=adapter, out=out, dtype=dtype, force=force, progress=progress
        )
    say([*certificate.sentences(), f"merged model: {out}"])


command = with_options(merge, OPTIONS)
