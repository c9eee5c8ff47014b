"""`lorakit adapters extract`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.adapters.combine_command import Name, Out
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say
from lorakit.config import load_config

OPTIONS = ("revision", "targets", "exclude", "layers", "trust_remote_code", "store")


def extract(
    base: Annotated[str, typer.Option("--base", help="The model that the adapter will belong to.")],
    tuned: Annotated[str, typer.Option("--tuned", help="The same model, fully fine-tuned.")],
    rank: Annotated[int | None, typer.Option("--rank", help="Highest rank of a layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", help="Share of a layer's squared difference to keep."),
    ] = None,
    name: Name = None,
    out: Out = None,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Make an adapter out of two full models: the best low-rank pair for each W' - W.

    Printed for each kind of layer: how far it moved and what the rank does not hold. What differs
    but has no pair (norms, embeddings, biases) is named.
    """
    from lorakit.run.commands.shaping import Output, run_extract

    config = load_config(None, flatten({**flags, "model": base}))
    with fetching() as progress:
        made, place = run_extract(
            config,
            tuned,
            Output(out, name, config.output.store),
            rank=rank,
            energy=energy,
            progress=progress,
        )
    table = Table(box=None, pad_edge=False)
    for title in ("layer", "rank", "moved by", "not held"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for layer in made.layers:
        table.add_row(layer.path, str(layer.rank), f"{layer.relative:.3%}", f"{layer.lost:.2%}")
    console.print(table)
    lines = list(made.notes)
    if made.unchanged:
        lines.append(f"equal in both models, so without a pair: {len(made.unchanged)} targets")
    if made.left:
        worst = sorted(made.left, key=lambda item: -item.relative)
        shown = ", ".join(f"{item.name} (moved by {item.relative:.3%})" for item in worst[:5])
        more = f" and {len(worst) - 5} more, all in lorakit.json" if len(worst) > 5 else ""
        lines.append(f"differs, and the adapter does not have it: {shown}{more}")
    lines.append(f"of all differences of the adapted layers {made.lost:.2%} is not held")
    say([*lines, f"extracted: {place}"])


command = with_options(extract, OPTIONS)
