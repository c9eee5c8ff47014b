"""`lorakit merge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import RECORDED_BASE, RunConfig, load_config
from lorakit.errors import ConfigError
from lorakit.run.present import require_adapters, require_present
from lorakit.run.weighted import parse_weighted

OPTIONS = ("model", "revision", "device", "trust_remote_code", "ignore_adapter", "store")

Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="nf4|int8|base",
        help="Write a quantized model, as bitsandbytes keeps it and transformers loads it; base: as the "
        "base is. The certificate says what share of the update arrives, by layer.",
    ),
]
FullBase = Annotated[
    str | None,
    typer.Option(
        "--full-base",
        metavar="FOLDER",
        help="The quantized base in full precision: the update is added to its weights and quantized "
        "once, so that it arrives. Without --quantize the format is the base's.",
    ),
]
Undo = Annotated[
    Path | None,
    typer.Option(
        "--undo",
        metavar="MERGED",
        help="Do the opposite: write the base of this merged folder into --out, with the files "
        "of --model, whose hashes must match.",
    ),
]


def merge(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="The adapter to merge: a folder or a name in the store. Give it several times, as "
            "ADAPTER:WEIGHT, for a weighted sum.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The new model folder; it must be empty or not exist."),
    ] = None,
    dtype: Annotated[
        Literal["base", "float32", "bfloat16", "float16"],
        typer.Option(
            "--dtype",
            help="Number format of the merged weights; base keeps the format of each tensor.",
        ),
    ] = "base",
    certify: Annotated[
        Literal["auto", "weights", "logits"],
        typer.Option(
            "--certify",
            help="weights: every merged tensor is read back and compared with float64, in little "
            "memory. logits: the logits of the merged model and of the adapter are compared as "
            "well. auto: logits where the model fits into memory, else weights.",
        ),
    ] = "auto",
    quantize: Quantize = None,
    full_base: FullBase = None,
    undo: Undo = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Merge adapters into their base: an ordinary model folder that transformers loads. Examples:

    `lorakit merge --adapter runs/first/adapter --out merged`

    `lorakit merge --adapter invoices:0.7 --adapter letters:0.3 --out merged-both`

    W + s·B·A is computed in float32 and rounded once, file by file, so that only a few blocks of
    rows are in memory. A quantized base is dequantized for that, and stays quantized with --quantize base.
    `certificate.json` in the folder says how far the written weights are from
    that sum and, where the model fits into memory, how far its logits are from the adapter's. Above
    the tolerance nothing is written.
    """
    config = load_config(None, flatten(flags))
    if out is None:
        raise ConfigError("give --out, the folder for the merged model")
    require_present(config)
    if undo is not None:
        if adapter or quantize or full_base:
            raise ConfigError(
                "--undo gives the base back: leave --adapter, --quantize and --full-base out"
            )
        _undo(config, undo, out)
        return
    if not adapter:
        raise ConfigError("nothing to merge: give --adapter")
    weighted = [parse_weighted(text) for text in adapter]
    require_adapters((name for name, _ in weighted), config.output.store)
    from lorakit.run.commands.merging import run_merge

    with fetching() as progress:
        certificate = run_merge(
            config,
            adapters=weighted,
            out=out,
            dtype=dtype,
            certify=certify,
            force=force,
            quantize=quantize,
            full_base=full_base,
            progress=progress,
        )
    say([*certificate.sentences(), f"merged model: {out}"])


command = with_options(merge, OPTIONS, shown=RECORDED_BASE)


def _undo(config: RunConfig, merged: Path, out: Path) -> None:
    from lorakit.run.commands.merging import run_unmerge

    with fetching() as progress:
        copied = run_unmerge(config, merged=merged, out=out, progress=progress)
    say([f"the base of {merged}, {copied} files copied from {config.model.model}: {out}"])
