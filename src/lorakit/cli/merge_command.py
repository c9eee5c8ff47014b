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
from lorakit.errors import ConfigError

OPTIONS = ("model", "revision", "device", "trust_remote_code", "store")


def merge(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="The adapter to fold in, a folder or a name in the store; ADAPTER:WEIGHT, and "
            "several times for a weighted sum.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The new model folder; it must be empty.")
    ] = None,
    dtype: Annotated[
        Literal["base", "float32", "bfloat16", "float16"],
        typer.Option(
            "--dtype",
            help="Number format of the merged weights; 'base' keeps that of each tensor's file.",
        ),
    ] = "base",
    certify: Annotated[
        Literal["auto", "weights", "logits"],
        typer.Option(
            "--certify",
            help="weights: every merged tensor read back against float64, in little memory; "
            "logits: answers compared as well; auto: logits where the model fits the memory.",
        ),
    ] = "auto",
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo",
            metavar="MERGED",
            help="Instead: put the base of a merged folder into --out, its bytes from --model.",
        ),
    ] = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Fold adapters into their base: an ordinary model folder that transformers alone loads.

    W + s·B·A is added in float32 and rounded once, file by file: memory is a few blocks of rows,
    not the model. `certificate.json` in the folder says how far the written weights are from that
    sum and, where the model fits the memory, its logits from the adapter's; above the tolerance
    nothing is written.
    """
    from lorakit.run.commands.merging import parse_weighted, run_merge, run_unmerge

    config = load_config(None, flatten(flags))
    if out is None:
        raise ConfigError("no place to write to: give --out")
    if undo is not None:
        if adapter:
            raise ConfigError("--undo gives the base back: leave --adapter out")
        with fetching() as progress:
            copied = run_unmerge(config, merged=undo, out=out, progress=progress)
        say([f"the base of {undo}, {copied} files copied from {config.model.model}: {out}"])
        return
    if not adapter:
        raise ConfigError("nothing to fold in: give --adapter")
    with fetching() as progress:
        certificate = run_merge(
            config,
            adapters=[parse_weighted(text) for text in adapter],
            out=out,
            dtype=dtype,
            certify=certify,
            force=force,
            progress=progress,
        )
    say([*certificate.sentences(), f"merged model: {out}"])


command = with_options(merge, OPTIONS)
