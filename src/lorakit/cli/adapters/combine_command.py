"""`lorakit adapters combine`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lorakit.adapters.specs import CombineSpec
from lorakit.cli.adapters.fields import help_of
from lorakit.cli.generate_command import Force
from lorakit.cli.options import flatten, with_options
from lorakit.cli.show import say
from lorakit.config import load_config
from lorakit.run.present import require_adapters
from lorakit.run.weighted import parse_weighted

Name = Annotated[
    str | None,
    typer.Option("--name", help="Put the new adapter into the store under this name."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write the new adapter into this folder instead of the store."),
]
OPTIONS = ("store",)


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[:WEIGHT]…",
            help="Names in the store or folders, each with its weight; a negative weight subtracts. "
            "Default weight: 1.",
        ),
    ],
    how: Annotated[str, typer.Option("--how", help=help_of(CombineSpec, "how"))] = "linear",
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
            "'a:mlp\\..*=0.2'; may be given several times.",
        ),
    ] = None,
    name: Name = None,
    out: Out = None,
    force: Force = False,
    *,
    flags: Mapping[str, Any],
) -> None:
    """Combine several adapters of one base into one adapter. Example:

    `lorakit adapters combine invoices:0.7 letters:0.3 --how ties --rank 16 --name both`
    """
    store = load_config(None, flatten(flags)).output.store
    spec = CombineSpec(how, rank, energy, density, seed)  # type: ignore[arg-type]
    require_adapters((parse_weighted(text)[0] for text in adapters), store)
    from lorakit.run.commands.shaping import Output, run_combine

    combined, place = run_combine(
        adapters,
        spec,
        Output(out, name, store),
        layer_weights=layer_weight or (),
        force=force,
    )
    ranks = sorted({pair.rank for pair in combined.adapter.pairs.values()})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    target = "the weighted sum" if how in ("linear", "cat", "svd", "factors") else "the full result"
    exact = "exact, to rounding" if how in ("linear", "cat") else f"off by {combined.overall:.2%}"
    say(
        [
            *combined.notes,
            f"{len(combined.adapter.pairs)} modules, {span}; compared with {target}: {exact}",
            f"combined: {place}",
        ]
    )


command = with_options(combine, OPTIONS)
