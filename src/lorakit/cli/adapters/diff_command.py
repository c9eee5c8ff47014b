"""`lorakit adapters diff`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from lorakit.cli.adapters.common import Json, StoreFolder, write_columns, write_json
from lorakit.cli.show import say
from lorakit.run.named import find_adapter
from lorakit.run.present import require_adapters


def diff(
    a: Annotated[str, typer.Argument(help="A name in the store, a version of it, or a folder.")],
    b: Annotated[str, typer.Argument(help="The adapter to compare it with.")],
    layers: Annotated[
        int,
        typer.Option("--layers", help="Number of layers to show, those that differ most first."),
    ] = 8,
    store: StoreFolder = None,
    json: Json = False,
) -> None:
    """Compare two adapters: configuration, data, figures, and weights layer by layer. Example:

    `lorakit adapters diff invoices@1 invoices@2`

    Norms are Frobenius norms of ΔW = s·B·A. The overlap of two subspaces is
    ||UᵀV||² / min(i, j): 1 where the smaller lies in the other, 0 where they are orthogonal
    (arXiv 2106.09685, section 7.2). It is given for the inputs that ΔW reads and for the outputs
    that it writes.
    """
    require_adapters((a, b), store)
    from lorakit.adapters.differences import differences
    from lorakit.adapters.pairs import read_stored

    adapters = [find_adapter(text, store) for text in (a, b)]
    result = differences(*(read_stored(adapter.folder) for adapter in adapters))
    if json:
        write_json({"a": adapters[0].name, "b": adapters[1].name, **asdict(result)})
        return
    facts = {**result.facts, **result.metrics}
    rows = [(name.replace("_", " "), *map(_text, values)) for name, values in facts.items()]
    write_columns([("", adapters[0].name, adapters[1].name), *rows])
    for paths, only in ((result.only_a, adapters[0].name), (result.only_b, adapters[1].name)):
        if paths:
            more = f" and {len(paths) - 1} more" if paths[1:] else ""
            say([f"only in {only}: {paths[0]}{more}"])
    say(f"not compared: {path}: {why}" for path, why in result.unlike.items())
    titles = ["module", "norm a", "norm b", "norm a-b", "cosine", "overlap in", "overlap out"]
    table = [titles]
    ordered = sorted(result.layers, key=lambda layer: -layer.norm_difference)
    for one in ordered[:layers]:
        norms = (one.norm_a, one.norm_b, one.norm_difference)
        shares = (one.cosine, one.overlap_in, one.overlap_out)
        cells = ("-" if share is None else f"{share:.3f}" for share in shares)
        table.append([one.path, *(f"{norm:.4g}" for norm in norms), *cells])
    if result.layers:
        say(["layers"])
        write_columns(table, right=range(1, 7))
    if len(ordered) > layers:
        say([f"and {len(ordered) - layers} more; --layers {len(ordered)} shows all"])


command = diff


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)
