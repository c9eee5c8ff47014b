"""`lorakit check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import show_prepared
from lorakit.cli.show import console, say
from lorakit.config import load_config
from lorakit.files.wording import count


def check(
    config: Annotated[
        Path | None, typer.Argument(help="A run file (YAML); a flag overrides its line.")
    ] = None,
    rows: Annotated[int, typer.Option("--show", help="Number of training rows to show.")] = 3,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Show what `lorakit train` would do with the same options. Nothing is trained or written.

    `lorakit check --data rows.jsonl`

    It prints how the rows are read, their lengths, a few rows with the supervised tokens coloured,
    the modules that would be adapted, and a forecast of memory and time.
    """
    from lorakit.run.commands.training import prepare

    settings = load_config(config, flatten(flags))
    if not settings.together:
        _show(prepare(settings), rows)
        return
    from lorakit.run.commands.together import jobs_of

    for job in jobs_of(settings):
        console.rule(job.name)
        _show(prepare(job.config), rows)


def _show(ready: Any, rows: int) -> None:
    """One run: plan and forecast, lengths, and some rows with their supervised tokens."""
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
    console.print("\n[bold]rows[/] (the supervised tokens are [black on green]coloured[/])")
    for i in range(min(rows, len(data.train))):
        encoded = data.train[i]
        console.print(f"[dim]{encoded.origin}, {count(len(encoded))} tokens[/]")
        line = Text()
        for token in preview.fragments(encoded, tokenizer):
            line.append(token.text, style="black on green" if token.supervised else "")
        console.print(line)


command = with_options(check)
