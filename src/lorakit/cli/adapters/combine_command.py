"""`lorakit adapters combine`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lorakit.adapters.specs import WAYS, CombineSpec
from lorakit.cli.adapters.fields import help_of
from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.progress import fetching
from lorakit.cli.show import console, say
from lorakit.config import MODEL_OPTIONS, RECORDED_BASE, RunConfig, load_config
from lorakit.errors import ConfigError, did_you_mean
from lorakit.run.present import require_adapters, require_present
from lorakit.run.weighted import parse_weighted

if TYPE_CHECKING:
    from lorakit.adapters.combine import Combined
    from lorakit.run.commands.shaping import Output
    from lorakit.run.commands.trying import Tried

Name = Annotated[
    str | None,
    typer.Option("--name", help="Put the new adapter into the store under this name."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write the new adapter into this folder instead of the store."),
]
_MEASURING = ("max_eval_rows", "max_new_tokens")
OPTIONS = (*MODEL_OPTIONS, "data", *_MEASURING, "store")


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT]…",
            help="Names in the store or folders, each with its weight; a negative weight subtracts. "
            "Default weight: 1.",
        ),
    ],
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            help=help_of(CombineSpec, "how") + " Default: linear; with --data the best of them.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help=help_of(CombineSpec, "rank"))] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", help=help_of(CombineSpec, "energy"))
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help=help_of(CombineSpec, "density"))
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help=help_of(CombineSpec, "seed"))] = 0,
    layer_weight: Annotated[
        list[str] | None,
        typer.Option(
            "--layer-weight",
            metavar="ADAPTER:PATTERN=WEIGHT",
            help="Another weight for the modules that match a regular expression, such as "
            "'a:mlp.*=0.2'; may be given several times.",
        ),
    ] = None,
    name: Name = None,
    out: Out = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Combine several adapters of one base into one adapter. Examples:

    `lorakit adapters combine invoices:0.7 letters:0.3 --how ties --rank 16 --name both`

    `lorakit adapters combine invoices letters --data mails.jsonl,more.jsonl --name both`

    With `--data`, a file of rows for each adapter, the sum, the weighted sum, TIES and DARE are measured
    on held-out rows of every adapter's task, and the best is kept unless `--how` names another.
    """
    config = load_config(None, flatten(flags))
    store = config.output.store
    options = {"how": how, "rank": rank, "energy": energy, "density": density, "seed": seed}
    measured = bool(config.data.data)
    if how is not None and how not in WAYS:
        raise ConfigError(f"how is {how!r}: {did_you_mean(how, WAYS)}")
    if measured and len(config.data.data) != len(adapters):
        raise ConfigError(
            f"{len(adapters)} adapters and {len(config.data.data)} sources of rows: give one for each "
            "adapter, in their order, such as --data a.csv,b.csv"
        )
    if not measured and (alone := sorted({*_MEASURING, *MODEL_OPTIONS} & set(flags))):
        raise ConfigError(f"--{alone[0].replace('_', '-')} is for measuring: give --data as well")
    chosen = how or "linear"
    spec = None if measured else CombineSpec(chosen, rank, energy, density, seed)  # type: ignore[arg-type]
    require_adapters((parse_weighted(text)[0] for text in adapters), store)
    if spec is None:
        require_present(config)
        from lorakit.run.commands.shaping import Output

        _best(config, adapters, options, Output(out, name, store), layer_weight or (), force=force)
        return
    from lorakit.run.commands.shaping import Output, run_combine

    combined, place = run_combine(
        adapters,
        spec,
        Output(out, name, store),
        layer_weights=layer_weight or (),
        force=force,
    )
    _say_made(combined, chosen, place)


def _say_made(combined: "Combined", how: str, place: str) -> None:
    ranks = sorted({pair.rank for pair in combined.adapter.pairs.values()})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    summed = ("linear", "cat", "svd", "factors", "sum", "weighted sum")
    target = "the weighted sum" if how in summed else "the full result"
    exact = "exact, to rounding" if how in _EXACT else f"off by {combined.overall:.2%}"
    say(
        [
            *combined.notes,
            f"{len(combined.adapter.pairs)} modules, {span}; compared with {target}: {exact}",
            f"combined: {place}",
        ]
    )


_EXACT = ("linear", "cat", "sum", "weighted sum")


def _best(
    config: RunConfig,
    adapters: Sequence[str],
    options: Mapping[str, Any],
    output: "Output",
    layer_weights: Sequence[str],
    *,
    force: bool,
) -> None:
    """Measure every way, say which is best, and keep it or the one that was named."""
    from lorakit.run.commands.shaping import run_combine_best

    with fetching() as progress:
        tried = run_combine_best(
            *(config, adapters, options, output),
            layer_weights=layer_weights,
            force=force,
            progress=progress,
            told=lambda name, done, total: progress(f"measuring {name}", done, total),
        )
    console.print(tried_table(tried))
    best = tried.best
    mean = "by its mean loss" if best.mean is None else f"mean {best.mean:.3f}"
    say([*tried.notes, f"best of these ways: {best.name} ({mean})"])
    _say_made(tried.made, tried.chosen, tried.place)
    if tried.train:
        say(
            [
                "one adapter trained on the rows of all tasks is usually better than any combination:",
                tried.train,
            ]
        )
    else:
        say(
            [
                "one adapter trained on the rows of all tasks is usually better than any combination; the "
                "rows of these are mapped in different ways: write them into one file with the columns "
                "prompt and completion, and train on that"
            ]
        )


def tried_table(tried: "Tried") -> Table:
    """Rows are ways, columns the tasks and their mean; a loss where a task has no answers."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    first = tried.ways[0]
    for task, measure in zip(tried.tasks, first.measures, strict=True):
        what = measure.replace("_", " ") or "loss"
        table.add_column(Text(f"{task}\n{what}"), justify="right")
    table.add_column("mean", justify="right")
    for way in (*tried.alone, *tried.ways):
        name = f"{way.name} alone" if way in tried.alone else way.name
        marked = f"{name} (best)" if way is tried.best else name
        cells = [
            f"{loss:.4f}" if score is None else f"{score:.3f}"
            for score, loss in zip(way.scores, way.losses, strict=True)
        ]
        mean = f"{fmean(way.losses):.4f}" if way.mean is None else f"{way.mean:.3f}"
        table.add_row(Text(marked), *cells, mean)
    return table


command = with_options(combine, OPTIONS, shown=RECORDED_BASE)
