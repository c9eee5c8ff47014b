"""`lorakit compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorakit.cli.compare_progress import CompareWatcher, show_estimate
from lorakit.cli.options import flatten, with_options
from lorakit.cli.show import console, duration, report_line, say
from lorakit.comparing.spec import FORM, CompareSettings
from lorakit.errors import InterruptedRunError
from lorakit.extras import need
from lorakit.files.wording import command_line, count, size
from lorakit.run.folder import CONFIG, repeating
from lorakit.run.present import require_present, require_run_folder


def compare(
    config: Annotated[
        Path | None,
        typer.Argument(help="The config.yaml of a comparison; a flag overrides its line."),
    ] = None,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast", help="Print the time and memory that it would take, and train nothing."
        ),
    ] = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Compare LoRA with full fine-tuning on your rows, by one protocol, with a verdict. Examples:

    `lorakit compare --data rows.jsonl --eval-data test.jsonl --out runs/compared`

    `lorakit compare --data rows.csv --prompt '{question}' --completion '{answer}' --ranks 8,32 --seeds 3`

    `lorakit compare --data rows.jsonl --budget '200 steps' --forecast`

    All arms train on the same rows in the same batches with the same schedule; each gets its own
    learning rate from short runs of equal cost. Every trial runs in a process of its own, whose
    memory and time are measured. The folder then holds `report.html` (the verdict, curves, costs,
    forgetting, answers side by side), `result.json`, and the adapters under `trials/`.

    Finished trials are kept: after an interruption, `--resume --out FOLDER` runs the missing ones.
    """
    need("metrics", "`lorakit compare`")
    given = resolve(config, flatten(flags))
    if not forecast:
        require_run_folder(given.config)
    require_present(given.config)
    with CompareWatcher() as watcher:
        if forecast:
            from lorakit.comparing.command import estimate_only
            from lorakit.comparing.methods import arms_of

            estimate = estimate_only(given, report=watcher)
            held = given.config.model.base_dtype
            arms = arms_of(given.spec, given.config.lora, held)
            show_estimate(estimate, [arm.name for arm in arms])
            return
        result = _run(given, watcher)
    summarise(result, Path(given.config.output.out))


command = with_options(compare, FORM.options, also=(FORM.section, FORM.spec), shown=FORM.defaults)


def resolve(path: Path | None, flags: Mapping[str, Any]) -> CompareSettings:
    """The settings; with --resume and no file, those in the folder."""
    if flags.get("resume") and path is None and "out" in flags:
        earlier = Path(str(flags["out"])) / CONFIG
        path = earlier if earlier.is_file() else None
    return FORM.read(path, flags)


def _run(given: CompareSettings, watcher: CompareWatcher) -> dict[str, Any]:
    from lorakit.comparing.command import run_compare

    command = repeating("compare", given.config.output.out)
    try:
        return run_compare(given, command=command, report=watcher)
    except KeyboardInterrupt:
        again = command_line("compare", "--resume", "--out", given.config.output.out)
        raise InterruptedRunError(
            f"interrupted; finished trials are kept. Continue with: {again}"
        ) from None


def summarise(result: Mapping[str, Any], out: Path) -> None:
    """Print the verdict and the main figures."""
    console.print()
    say([result["measured"]["headline"]])
    table = Table(box=None, pad_edge=False)
    for name in ("", "held-out loss", "KL from the base", "parameters", "memory", "step", "rate"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("base", f"{result['base']['loss']:.4f}", "0", "", "", "", "")
    for arm in result["arms"]:
        measured = arm["measured"]
        table.add_row(
            arm["name"],
            f"{arm['loss']['mean']:.4f}",
            f"{arm['kl']['mean']:.4f}",
            count(arm["trainable_parameters"]),
            size(measured["peak_memory_bytes"]),
            duration(measured["seconds_per_step"]),
            f"{arm['learning_rate']:g}",
        )
    console.print(table)
    say(
        [
            *(f"note: {note}" for note in result["notes"]),
            report_line(out),
            f"figures: {out / 'result.json'}",
        ]
    )
