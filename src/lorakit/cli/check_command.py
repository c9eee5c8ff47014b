"""`lorakit check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import show_prepared
from lorakit.cli.show import console, count, say
from lorakit.config import load_config


def check(
    config: Annotated[Path | None, typer.Argument(help="A run file (YAML).")] = None,
    rows: Annotated[int, typer.Option("--show", help="How many rows to show.")] = 3,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Show what `lorakit train` would do with the same options, before it does.

    The recognised shape of the rows, their lengths, some rows with the loss-bearing tokens
    coloured, what would be adapted, and the forecast of memory and time. Nothing is written.
    """
    from lorakit.run.commands.training import prepare

    chosen = load_config(config, flatten(flags))
    if not chosen.together:
        _show(prepare(chosen), rows)
        return
    from lorakit.run.commands.together import jobs_of

    for job in jobs_of(chosen):
        console.rule(job.name)
        _show(prepare(job.config), rows)


def _show(ready: Any, rows: int) -> None:
    """One run: plan and forecast, lengths, and some rows with what bears loss."""
    from lorakit.data import preview

    data, tokenizer = ready.data, ready.session.tokenizer
    show_prepared(ready)
    console.print("\n[bold]lengths in tokens[/]")
    lengths = preview.lengths(data.train)
    most = max(lengths.counts)
    edges = zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False)
    say(
        f"  {low:>6,}-{high - 1:<6,} {'█' * round(32 * rows_here / most):<32} {count(rows_here)}"
        for low, high, rows_here in edges
    )
    spread = ", ".join(f"{p} % up to {n:,}" for p, n in lengths.percentiles.items())
    say([f"  {spread}, longest {lengths.longest:,}"])
    console.print("\n[bold]rows[/] (the tokens that bear loss are [black on green]coloured[/])")
    for i in range(min(rows, len(data.train))):
        encoded = data.train[i]
        console.print(f"[dim]{encoded.origin}, {count(len(encoded))} tokens[/]")
        line = Text()
        for piece in preview.fragments(encoded, tokenizer):
            line.append(piece.text, style="black on green" if piece.supervised else "")
        console.print(line)


command = with_options(check)
