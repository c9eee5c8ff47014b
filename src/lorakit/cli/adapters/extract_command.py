"""`lorakit adapters extract`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.adapters.combine_command import Name, Out
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say
from lorakit.config import load_config
from lorakit.lora.limits import check_cut
from lorakit.models.sources import check_named
from lorakit.run.present import require_present

OPTIONS = (
    "revision",
    "targets",
    "exclude",
    "layers",
    "trust_remote_code",
    "ignore_adapter",
    "store",
)


def extract(
    base: Annotated[str, typer.Option("--base", help="The base model of the new adapter.")],
    tuned: Annotated[str, typer.Option("--tuned", help="The same model after full fine-tuning.")],
    rank: Annotated[int | None, typer.Option("--rank", help="The highest rank of a layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            help="The share of a layer's squared difference that is kept, such as 0.99. Give it, a "
            "rank, or both: then both limits hold.",
        ),
    ] = None,
    name: Name = None,
    out: Out = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Extract an adapter from a fine-tuned model: the best low-rank pair for each W' - W. Example:

    `lorakit adapters extract --base base-folder --tuned tuned-folder --rank 16 --name extracted`

    For each kind of layer it prints how far the layer moved and which share the rank cannot hold.
    Weights that differ but get no pair (norms, embeddings, biases) are listed.
    """
    config = load_config(None, flatten({**flags, "model": base}))
    check_cut(rank, energy)
    require_present(config)
    check_named(replace(config.model, model=tuned, revision=None))
    from lorakit.run.commands.shaping import Output, run_extract

    with fetching() as progress:
        extracted, place = run_extract(
            config,
            tuned,
            Output(out, name, config.output.store),
            rank=rank,
            energy=energy,
            progress=progress,
        )
    table = Table(box=None, pad_edge=False)
    for title in ("layer", "rank", "moved by", "lost"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for layer in extracted.layers:
        table.add_row(layer.path, str(layer.rank), f"{layer.relative:.3%}", f"{layer.lost:.2%}")
    console.print(table)
    lines = list(extracted.notes)
    if extracted.unchanged:
        lines.append(f"equal in both models, so without a pair: {len(extracted.unchanged)} targets")
    if extracted.left:
        worst = sorted(extracted.left, key=lambda item: -item.relative)
        shown = ", ".join(f"{item.name} (moved by {item.relative:.3%})" for item in worst[:5])
        more = f" and {len(worst) - 5} more, all in lorakit.json" if len(worst) > 5 else ""
        lines.append(f"differs, and is not in the adapter: {shown}{more}")
    lines.append(f"of all differences of the adapted layers {extracted.lost:.2%} is lost")
    say([*lines, f"extracted: {place}"])


command = with_options(extract, OPTIONS)
