"""`lorakit adapters shrink`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lorakit.adapters.specs import ShrinkSpec
from lorakit.cli.adapters.combine_command import Name, Out
from lorakit.cli.adapters.fields import help_of
from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import say
from lorakit.config import MODEL_OPTIONS, RECORDED_BASE, ROW_OPTIONS, load_config
from lorakit.files.wording import count
from lorakit.run.present import require_present

OPTIONS = (
    *MODEL_OPTIONS,
    "data",
    *ROW_OPTIONS,
    *("batch_tokens", "store"),
)


def shrink(
    adapter: Annotated[str, typer.Argument(help="A name in the store or a folder.")],
    rank: Annotated[int | None, typer.Option("--rank", help=help_of(ShrinkSpec, "rank"))] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", help=help_of(ShrinkSpec, "energy"))
    ] = None,
    threshold: Annotated[
        bool, typer.Option("--threshold", help=help_of(ShrinkSpec, "threshold"))
    ] = False,
    name: Name = None,
    out: Out = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Lower an adapter's ranks, and measure what that does to its held-out loss. Example:

    `lorakit adapters shrink invoices --rank 4 --data held_out.jsonl --name invoices-small`
    """
    config = load_config(None, flatten(flags))
    spec = ShrinkSpec(rank, energy, threshold)
    require_present(config, adapter)
    from lorakit.run.commands.shaping import Output, run_shrink

    with fetching() as progress:
        result = run_shrink(
            config,
            adapter,
            spec,
            Output(out, name, config.output.store),
            force=force,
            progress=progress,
        )
    ranks = sorted({pair.rank for pair in result.made.adapter.pairs.values()})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    before, after = result.parameters
    lines = [
        *result.made.notes,
        *result.notes,
        f"{span}: {count(after)} parameters instead of {count(before)}",
        f"energy kept: {1 - result.made.overall**2:.4%} of the squared singular values",
    ]
    if result.losses is None:
        lines.append(
            "the energy does not say how the completions change: give held-out rows with --data to "
            "measure the loss before and after"
        )
    else:
        first, second = result.losses
        lines.append(
            f"held-out loss: {first:.4f} before, {second:.4f} after ({second - first:+.4f} nats "
            "per token)"
        )
    say([*lines, f"shrunk: {result.place}"])


command = with_options(shrink, OPTIONS, shown=RECORDED_BASE)
