"""The figures of a comparison's page: SVG for the page, PNG in plots/, and in words."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lorakit.report import compare_plots as plots
from lorakit.report.compare_read import CompareFiles
from lorakit.report.compare_tables import interval
from lorakit.report.difference_plots import Difference, differences
from lorakit.report.drawing import Drawing, svg, write_png
from lorakit.report.numbers import loss, number, percent, signed, size
from lorakit.report.read import Record
from lorakit.report.run_figures import Figure

_PHONE = 420
_GB = 1e9


def compare_figures(files: CompareFiles, folder: Path) -> dict[str, Figure]:
    """The figures that the result allows, by name; each is a PNG in `folder` as well."""
    arms = files.arms
    before = float(files.result["base"]["loss"])
    figures = {}

    steps = [
        _curve(arm, i, "loss", [p["step"] for p in arm["course"]]) for i, arm in enumerate(arms)
    ]
    description = " ".join(
        f"{c.name}: {loss(c.mean[0])} at step 0, {loss(c.mean[-1])} at step {c.x[-1]:g}."
        for c in steps
    )

    def by_step(width: int) -> Drawing:
        return plots.course(
            steps, xlabel="step", ylabel="held-out loss (nats per token)", whole=True, width=width
        )

    figures["course"] = _two(
        by_step, "course", "Held-out loss over the steps", description,
        "Held-out loss over training: the mean of the seeds, and the span between them. "
        + ("Every arm took the same rows in the same steps." if _alike(arms) else
           "Arms took as many steps as the time allowed."),
        folder,
    )  # fmt: skip

    seconds = [
        _curve(arm, i, "loss", arm["measured"]["course_seconds"]) for i, arm in enumerate(arms)
    ]
    best = min(curve.mean[-1] for curve in seconds)
    drawing = plots.course(
        seconds, xlabel="seconds of training", ylabel="held-out loss (nats per token)",
        width=440, height=320,
    )  # fmt: skip
    spent = " ".join(f"{c.name}: {c.x[-1]:.0f} s to {loss(c.mean[-1])}." for c in seconds)
    figures["time"] = _one(
        drawing, "time", "Held-out loss over training time", spent,
        f"The same against time spent in steps, evaluations left out; the lowest end is {loss(best)}.",
        folder,
    )  # fmt: skip

    if any(arm["probe"] for arm in arms):
        figures["probe"] = _probe(arms, folder)

    both = [
        plots.Curve(
            arm["name"], i,
            [p["loss"]["mean"] for p in arm["course"]], [p["kl"]["mean"] for p in arm["course"]],
        )
        for i, arm in enumerate(arms)
    ]  # fmt: skip
    description = " ".join(
        f"{c.name} ends at a loss of {loss(c.x[-1])}, {number(c.mean[-1], 3)} nats per token from the base."
        for c in both
    )
    figures["forgetting"] = _two(
        lambda width: plots.learning_and_forgetting(both, width=width),
        "forgetting", "Learning and forgetting", description,
        f"Learning to the right, forgetting upwards; every curve begins at the base (loss {loss(before)}). "
        "The lower of two curves forgets less for the same gain.",
        folder,
    )  # fmt: skip

    figures["differences"] = _differences(files, folder)
    figures["trade_off"] = _trade_off(arms, files.result["protocol"]["level"], folder)
    return figures


def _differences(files: CompareFiles, folder: Path) -> Figure:
    """Held-out loss of each arm less the reference's, beside the margin."""
    judged = [d for d in files.result["differences"] if d["arm"] != files.reference["name"]]
    items = [
        Difference(
            d["arm"], d["verdict"]["word"], d["loss"]["mean"], d["loss"]["low"], d["loss"]["high"],
            d["verdict"]["margin"],
        )
        for d in judged
    ]  # fmt: skip
    described = " ".join(
        f"{d['arm']}: {d['verdict']['word']}, {interval(d['loss'], signed_loss)}." for d in judged
    )
    share = percent(files.result["protocol"]["margin"], 0)
    return _two(
        lambda width: differences(
            items, xlabel=f"held-out loss less that of {files.reference['name']} (nats per token)",
            width=width,
        ),
        "differences", "Differences of held-out loss", described,
        f"Each arm less {files.reference['name']}, with its interval over seeds and rows. Within the "
        f"band ({share} of the reference's gain, named before the comparison) two arms count as equal. "
        "Open circles: which is better cannot be told.",
        folder,
    )  # fmt: skip


def signed_loss(value: float) -> str:
    """A difference of losses."""
    return signed(value, 4)


def _trade_off(arms: Sequence[Record], level: float, folder: Path) -> Figure:
    parameters, memory = (
        [_point(arm, i, x) for i, arm in enumerate(arms)] for x in (_millions, _gigabytes)
    )
    description = " ".join(
        f"{arm['name']}: loss {loss(arm['loss']['mean'])}, {number(_millions(arm), 3)} million "
        f"parameters, {size(arm['measured']['peak_memory_bytes'])}."
        for arm in arms
    )
    return _two(
        lambda width: plots.trade_off(parameters, memory, width=width),
        "trade_off", "Quality against parameters and memory", description,
        f"Final held-out loss with its {percent(level, 0)} interval (seeds and rows), against what it took. "
        "Intervals of two arms overlap more than that of their difference shows, which is paired.",
        folder,
    )  # fmt: skip


def _curve(arm: Record, place: int, key: str, x: Sequence[float]) -> plots.Curve:
    points = [p[key] for p in arm["course"]]
    return plots.Curve(
        arm["name"], place, list(x),
        *([p[end] for p in points] for end in ("mean", "low", "high")),
    )  # fmt: skip


def _point(arm: Record, place: int, x: Callable[[Record], float]) -> plots.Point:
    ends = arm["loss"]
    low, high = (ends["mean"] if ends[end] is None else ends[end] for end in ("low", "high"))
    return plots.Point(arm["name"], place, x(arm), ends["mean"], low, high)


def _millions(arm: Record) -> float:
    return float(arm["trainable_parameters"]) / 1e6


def _gigabytes(arm: Record) -> float:
    return float(arm["measured"]["peak_memory_bytes"]) / _GB


def _probe(arms: Sequence[Record], folder: Path) -> Figure:
    """The first round, in which all rates were tried; the choice fell in the last."""
    curves, chosen, description = [], [], []
    for place, arm in enumerate(arms):
        tried = [p for p in arm["probe"] if p["round"] == 1 and p["loss"] is not None]
        curves.append(
            plots.Curve(arm["name"], place, [p["rate"] for p in tried], [p["loss"] for p in tried])
        )
        rate = arm["learning_rate"]
        chosen += [(place, rate, p["loss"]) for p in tried if p["rate"] == rate]
        description.append(f"{arm['name']}: {number(rate)}.")
    return _one(
        plots.probes(curves, chosen), "probe", "Learning rates tried", " ".join(description),
        "First round of each arm's probe; ringed the rate that the last round chose. Rates that "
        "diverged are left out.",
        folder,
    )  # fmt: skip


def _alike(arms: Sequence[Record]) -> bool:
    return len({arm["steps"] for arm in arms}) == 1


def _one(
    drawing: Drawing, name: str, title: str, description: str, caption: str, folder: Path
) -> Figure:
    write_png(drawing, folder / f"{name}.png")
    return Figure(svg(drawing, name.replace("_", "-"), title, description), caption)


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
    label = name.replace("_", "-")
    return Figure(
        svg(wide, label, title, description),
        caption,
        svg(narrow, f"{label}-narrow", title, description),
    )
