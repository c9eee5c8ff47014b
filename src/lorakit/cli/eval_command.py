"""`lorakit eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.adapters.measurements import score_name
from lorakit.cli.generate_command import Adapter, Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, duration, say
from lorakit.config import MODEL_OPTIONS, RECORDED_BASE, ROW_OPTIONS, load_config
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
    choices: Annotated[
        str | None,
        typer.Option(
            "--choices",
            help="Labels with commas between, such as yes,no: also measure how likely each is as "
            "the answer. Default: the reference answers, where they are few short labels.",
        ),
    ] = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Keep the scores with the adapter, for `lorakit adapters list`."
        ),
    ] = False,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Measure a model or an adapter on rows: loss, perplexity, and scores of greedy completions.

    `lorakit eval --data test.jsonl --adapter runs/first/adapter`

    Without `--adapter` the base model is measured. Every score is a share of the best possible,
    from 0 to 1. Answers that are labels are also judged by the likelihood of each label, which is
    fair to a base that answers in sentences.
    """
    config = load_config(None, flatten(flags))
    require_present(config, adapter)
    from lorakit.run.choosing import choices_of
    from lorakit.run.commands.evaluation import run_evaluation

    with fetching() as progress:
        result = run_evaluation(
            config,
            adapter=adapter,
            metrics=metrics,
            out=out,
            choices=choices_of(choices) if choices is not None else (),
            record=record,
            force=force,
            progress=progress,
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, value in result["scores"].items():
        table.add_row(score_name(name), f"{value:.3f}", _interval(result["intervals"].get(name)))
    if likely := result["choices"]:
        table.add_row("right label likeliest", f"{likely['accuracy']:.3f}", _interval(likely))
        table.add_row("probability of the right label", f"{likely['probability']:.3f}")
    table.add_row("loss (nats per token)", f"{result['eval_loss']:.4f}")
    table.add_row("perplexity", f"{result['perplexity']:.3f}")
    console.print(table)
    say([*result["notes"], f"{result['rows']} rows in {duration(result['seconds'])}"])
    if result["recorded"]:
        say([f"recorded with {result['recorded']}"])
    if out:
        say([f"written: {out / 'result.json'}"])


def _interval(spread: Mapping[str, Any] | None) -> str:
    """From its low end to its high one; '' where there is none."""
    if spread is None or spread.get("low") is None:
        return ""
    return f"{spread['low']:.3f} to {spread['high']:.3f}"


command = with_options(evaluate, OPTIONS, shown=RECORDED_BASE)
