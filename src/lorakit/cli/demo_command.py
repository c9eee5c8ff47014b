"""`lorakit demo`."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table

from lorakit.cli.show import console, say
from lorakit.cli.train_command import start_training
from lorakit.config import load_config
from lorakit.extras import no_page
from lorakit.run.folder import SAMPLES

ROWS, HELD_OUT, SHOWN = 400, 40, 3


def demo(
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/demo"),
    rows: Annotated[int, typer.Option("--rows", help="Training rows to make.")] = ROWS,
    held_out: Annotated[int, typer.Option("--held-out", help="Held-out rows.")] = HELD_OUT,
    seed: Annotated[int, typer.Option("--seed", help="Of the rows and the run.")] = 0,
) -> None:
    """Run the main job on the built-in model: customers' messages in, JSON tickets out.

    The rows come from a seeded generator in lorakit; a fifth of the held-out rows' pairs of
    product and phrasing never occur in training. The same held-out messages are answered before
    and after. It takes a few minutes on two cores.
    """
    from lorakit.data import write_tickets

    out = _fresh(out)
    console.print(
        Panel(
            "A support desk wants each customer's message as a JSON ticket. The built-in model "
            "(SmolLM2-135M-Instruct) cannot do it. lorakit teaches it on this machine, training "
            "under 2 % of its parameters, and shows the same messages before and after.",
            title="lorakit demo",
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        train_file, valid_file = write_tickets(Path(scratch), rows, held_out, seed)
        row = json.loads(train_file.read_text(encoding="utf-8").splitlines()[0])
        console.print("[bold]One training row[/]")
        say([f"  {row['prompt']}", f"  -> {row['completion']}", ""])
        config = load_config(
            None,
            {
                "data": (str(train_file),),
                "eval_data": (str(valid_file),),
                "samples": held_out,
                "max_new_tokens": 96,
                "epochs": 2.0,
                "batch_size": 8,
                "seed": seed,
                "out": str(out),
            },
        )
        start_training(config, f"lorakit demo --rows {rows} --held-out {held_out} --seed {seed}")
    samples = json.loads((out / SAMPLES).read_text(encoding="utf-8"))
    console.print("\n[bold]Held-out messages, before and after[/]")
    for sample in samples[:SHOWN]:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, key in (
            ("message", "prompt"),
            ("before", "before"),
            ("after", "after"),
            ("wanted", "reference"),
        ):
            table.add_row(name, sample[key].strip()[:400] or "(nothing)")
        console.print(table)
        console.print()
    if no_page() is None:
        say([f"all {len(samples)} of them, the curves and the scores: open {out / 'report.html'}"])
    else:
        say([f"all {len(samples)} of them: {out / SAMPLES}"])


command = demo


def _fresh(out: Path) -> Path:
    """The folder asked for, or the next free name: a demo is run more than once."""
    place, number = out, 2
    while place.exists() and any(place.iterdir()):
        place, number = out.with_name(f"{out.name}-{number}"), number + 1
    return place
