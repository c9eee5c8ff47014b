"""The figures of a search's page: SVG for the page, PNG in plots/, and in words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from lorakit.report import rank_plots as plots
from lorakit.report.difference_plots import Difference, differences
from lorakit.report.drawing import Drawing, svg, write_png
from lorakit.report.numbers import loss, number, percent, signed
from lorakit.report.rank_read import RankFiles
from lorakit.report.read import Record
from lorakit.report.run_figures import Figure

_PHONE = 420


def rank_figures(files: RankFiles, folder: Path) -> dict[str, Figure]:
    """The figures that the result allows, by name; each is a PNG in `folder` as well."""
    result = files.result
    figures = {"loss": _loss(result, folder)}
    if len(_rank_curves(result)) > 1:
        figures["leaving"] = _leaving(result, folder)
    figures |= spectra_figures(result["spectra"]["values"], result["spectra"]["rank"], folder)
    tried = [(p["round"], p["rate"], p["loss"]) for p in result["probe"] if p["loss"] is not None]
    if tried:
        description = " ".join(f"Round {n}, {number(rate)}: {loss(at)}." for n, rate, at in tried)
        figures["rates"] = _one(
            plots.rates(tried, result["learning_rate"]), "rates", "Learning rates tried", description,
            f"Rates tried at rank {result['probe_rank']} on held-out rows; ringed the one that every "
            "run of the search took. A second round is the mean over seeds. Rates that diverged are "
            "left out.",
            folder,
        )  # fmt: skip
    cost = result["cost"]
    parts = [(name, flops / cost["flops_of_one_run"]) for name, flops in cost["flops"].items()]
    description = " ".join(f"{name}: {number(share, 2)} runs." for name, share in parts)
    figures["cost"] = _two(
        lambda width: plots.costs(parts, width=width), "cost", "Cost of the search", description,
        f"FLOPs of training and measuring, in runs at the highest rank: {number(cost['runs'], 3)} "
        "for the answer"
        + (f", {number(cost['with_checks'], 3)} with the requested checks." if
           cost["with_checks"] > cost["runs"] else "."),
        folder,
    )  # fmt: skip
    return figures


def _loss(result: Record, folder: Path) -> Figure:
    """Each rank that was compared less the reference, after the same steps of both."""
    items = [
        Difference(
            f"rank {rank}, {'whole run' if gap['share'] >= 1 else percent(gap['share'], 0) + ' of a run'}",
            gap["verdict"]["word"], gap["mean"], gap["low"], gap["high"], gap["verdict"]["margin"],
        )
        for rank, gap in result["gaps"].items()
    ]  # fmt: skip
    reference = result["reference"]
    described = " ".join(
        f"{item.name}: {signed(item.mean, 4)} ({signed(item.low, 4)} to {signed(item.high, 4)}), {item.word}."
        for item in items
    )
    levels = {gap["level"] for gap in result["gaps"].values() if gap["level"] is not None}
    level = f"its {percent(min(levels), 0)} interval" if levels else "no interval"
    return _two(
        lambda width: differences(
            items, xlabel=f"held-out loss less rank {reference} (nats per token)", width=width
        ),
        "loss", "Held-out loss beside the reference", described or "Nothing was compared.",
        f"Held-out loss of each rank less that of rank {reference} after the same steps, with {level} "
        "over rows and seeds. Within the band (the margin, named before the search) ranks count as "
        f"equal. Open circles: cannot be told. Recommended: rank {result['recommended_rank']}.",
        folder,
    )  # fmt: skip


def _rank_curves(result: Record) -> list[plots.LossCurve]:
    """Runs of the search itself by rising rank: one seed, no checks."""
    seeds = [c["seed"] for c in result["curves"] if not c["by_layer"]]
    own = [
        c
        for c in result["curves"]
        if not c["by_layer"] and c["seed"] == seeds[0] and c["rate"] == result["learning_rate"]
    ]
    return [
        plots.LossCurve(
            f"rank {c['rank']}", place, c["train"],
            [(p["step"], p["loss"]) for p in c["held_out"]],
        )
        for place, c in enumerate(sorted(own, key=lambda c: c["rank"]))
    ]  # fmt: skip


def _leaving(result: Record, folder: Path) -> Figure:
    courses = _rank_curves(result)
    description = " ".join(
        f"{c.name}: {loss(c.train[0])} at step 1, {loss(c.train[-1])} at step {len(c.train)}."
        for c in courses
    )
    return _two(
        lambda width: plots.leaving(courses, width=width), "leaving",
        "Learning curves, and what separates them", description,
        "Loss of each step's batch, smoothed, and held-out loss (circles; before the end on half of "
        "the rows, with the mean of the last steps' pairs). "
        "All runs take the same batches, so that their differences, below, are paired: a low rank "
        "follows the common curve until its capacity is used up.",
        folder,
    )  # fmt: skip


def spectra_figures(
    spectra: Mapping[str, Sequence[float]], rank: int, folder: Path
) -> dict[str, Figure]:
    """Where an adapter's change is (a map over layers and modules), and how it decays."""
    kinds, layers, table = by_layer(spectra)
    largest = [[max(table.get((k, layer), [0.0])) for layer in layers] for k in kinds]
    top = max(((k, layer) for k, layer in table), key=lambda key: max(table[key]))
    description = f"The largest singular value, {number(max(table[top]), 3)}, is at {top[0]} of layer {top[1]}."
    curves = []
    for kind in kinds:
        rows = [values for (k, _), values in table.items() if k == kind and values[0] > 0]
        longest = max((len(values) for values in rows), default=0)
        curve = [
            median(values[i] / values[0] if i < len(values) else 0.0 for values in rows)
            for i in range(longest)
        ]
        if curve:
            curves.append((kind, curve))
    figures = {
        "heat": _two(
            lambda width: plots.heat(
                kinds, layers, largest, label="largest singular value", width=width
            ),
            "heat", "Singular values over layers and modules", description,
            f"Largest singular value of s·B·A in each module of the adapter of rank {rank}. It says "
            "where the adapter changes most, and not which rank the task needs.",
            folder,
        )
    }  # fmt: skip
    if curves:
        ends = " ".join(f"{name}: the last is {number(curve[-1], 2)}." for name, curve in curves)
        figures["decay"] = _one(
            plots.decay(curves), "decay", "How singular values decay", ends,
            "Singular values over the largest, the median of each kind of module.",
            folder,
        )  # fmt: skip
    return figures


def by_layer(
    spectra: Mapping[str, Sequence[float]],
) -> tuple[list[str], list[int], dict[tuple[str, int], Sequence[float]]]:
    """Kinds of modules, layers, and the values of each, from module paths."""
    table: dict[tuple[str, int], Sequence[float]] = {}
    for path, values in spectra.items():
        numbers = [int(part) for part in path.split(".") if part.isdecimal()]
        table[path.rsplit(".", 1)[-1], numbers[0] if numbers else 0] = values
    kinds = list(dict.fromkeys(kind for kind, _ in table))
    return kinds, sorted({layer for _, layer in table}), table


def _one(
    drawing: Drawing, name: str, title: str, description: str, caption: str, folder: Path
) -> Figure:
    write_png(drawing, folder / f"{name}.png")
    return Figure(svg(drawing, name, title, description), caption)


def _two(
    drawn: Callable[[int], Drawing],
    name: str,
    title: str,
    description: str,
    caption: str,
    folder: Path,
) -> Figure:
    """A figure for the page and one for a phone."""
    wide, narrow = drawn(880), drawn(_PHONE)
    write_png(wide, folder / f"{name}.png")
    return Figure(
        svg(wide, name, title, description),
        caption,
        svg(narrow, f"{name}-narrow", title, description),
    )
