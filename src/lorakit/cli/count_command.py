"""`lorakit count`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.options import flatten, with_options
from lorakit.cli.show import console, left_out, say
from lorakit.config import load_config
from lorakit.errors import ConfigError
from lorakit.files.wording import count
from lorakit.lora import equations
from lorakit.run.present import require_present

OPTIONS = (
    *("model", "revision", "trust_remote_code", "ignore_adapter"),
    *("rank", "targets", "target_parameters", "exclude", "layers", "rank_pattern"),
)


def count_parameters(
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="OUTxIN",
            help="Count one weight of this shape (output x input), such as 512x64, instead of a "
            "model.",
        ),
    ] = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Count the trainable parameters of one weight or of a whole model. Examples:

    `lorakit count --shape 512x64 --rank 8`

    `lorakit count --model smollm2-135m --rank 8`

    A model is counted from its configuration alone; its weights are not loaded.
    """
    config = load_config(None, flatten(flags))
    if shape is not None:
        if "model" in flags:
            raise ConfigError("--shape counts one weight and --model a whole model: give one")
        _count_weight(shape, config.lora.rank)
        return
    require_present(config)
    from lorakit.lora import plan
    from lorakit.models import empty_model

    adapted = plan(empty_model(config.model), config.lora)
    table = Table(box=None, pad_edge=False)
    for name in ("module", "shape", "rank", "frozen", "trainable"):
        table.add_column(name, justify="left" if name == "module" else "right")
    for target in adapted.targets:
        size = " x ".join(
            str(n) for n in (target.geometry.out_features, target.geometry.in_features)
        )
        row = (target.path, size, str(target.rank), count(target.frozen), count(target.trainable))
        table.add_row(*row)
    console.print(table)
    fewer = 1 - adapted.trainable / adapted.total_parameters
    say(
        [
            *left_out(adapted),
            f"{len(adapted.targets)} modules of {config.model.model}",
            f"frozen     {count(adapted.total_parameters)}",
            f"trainable  {count(adapted.trainable)}, {100 * fewer:.1f} % fewer",
        ]
    )


command = with_options(count_parameters, OPTIONS)


def _count_weight(shape: str, rank: int) -> None:
    match = re.fullmatch(r"(\d+)[x×](\d+)", shape.strip().lower())
    if not match or "0" in match.groups():
        raise ConfigError(f"--shape is {shape!r}; write output x input, such as 512x64")
    out_features, in_features = int(match[1]), int(match[2])
    if rank > min(out_features, in_features):
        raise ConfigError(
            f"rank {rank} is above {min(out_features, in_features)}, the smaller side of {shape}"
        )
    frozen = out_features * in_features
    trainable = equations.trainable_parameters(in_features, out_features, rank)
    size_A, size_B = rank * in_features, out_features * rank
    change = 1 - trainable / frozen
    summary = f"{100 * change:.0f} % fewer" if change >= 0 else f"{-100 * change:.0f} % more than W"
    say(
        [
            f"frozen     {count(frozen)}  (W: {out_features} x {in_features})",
            f"trainable  {count(size_A)} + {count(size_B)} = {count(trainable)}  "
            f"(A: {rank} x {in_features}, B: {out_features} x {rank})",
            summary,
        ]
    )
