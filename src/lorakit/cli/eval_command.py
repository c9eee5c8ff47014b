"""`lorakit eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.generate_command import Adapter, Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, duration, say
from lorakit.config import MODEL_OPTIONS, ROW_OPTIONS, load_config
from lorakit.run.present import require_present

OPTIONS = (
    *MODEL_OPTIONS,
    "data",
    *ROW_OPTIONS,
    *("batch_tokens", "max_new_tokens", "store"),
)


def evaluate(
    adapter: Adapter = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            help="auto (those that fit the reference answers), none (only the loss; nothing is "
            "generated), or names, such as exact_match,f1.",
        ),
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for result.json and answers.jsonl. Default: nothing is written.",
        ),
    ] = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Measure a model or an adapter on rows: loss, perplexity, and scores of greedy completions.

    `lorakit eval --data test.jsonl --adapter runs/first/adapter`

    Without `--adapter` the base model is measured.
    """
    config = load_config(None, flatten(flags))
    require_present(config, adapter)
    from lorakit.run.commands.evaluation import run_evaluation

    with fetching() as progress:
        result = run_evaluation(
            config, adapter=adapter, metrics=metrics, out=out, force=force, progress=progress
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("loss (nats per token)", f"{result['eval_loss']:.4f}")
    table.add_row("perplexity", f"{result['perplexity']:.3f}")
    for name, value in result["scores"].items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    say([*result["notes"], f"{result['rows']} rows in {duration(result['seconds'])}"])
    if out:
        say([f"written: {out / 'result.json'}"])


command = with_options(evaluate, OPTIONS)
