"""The figures of a run's page: SVG for the page, PNG in plots/, and in words for who cannot see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.report import plots
from lorakit.report.drawing import Drawing, svg, write_png
from lorakit.report.numbers import is_number, number
from lorakit.report.read import Record, RunFiles


@dataclass(frozen=True)
class Figure:
    """A figure of the page; `narrow` is drawn for a phone where the wide one would be too small."""

    wide: str
    caption: str
    narrow: str = ""


def _points(records: Sequence[Record], key: str) -> plots.Points:
    values = [r.get(key) for r in records]
    return (
        [float(r["step"]) for r in records],
        [float(v) if is_number(v) else math.nan for v in values],
    )


def _any(points: plots.Points) -> bool:
    return any(math.isfinite(value) for value in points[1])


def run_figures(run: RunFiles, folder: Path, of: str = "") -> dict[str, Figure]:
    """The figures that the run's lines allow, by name; each is a PNG in `folder` as well.

    `of` sets them apart from other runs' on the same page.
    """
    own = f"{of}-" if of else ""
    figures: dict[str, Figure] = {}
    train, held_out = _points(run.train, "loss"), _points(run.held_out, "loss")
    if _any(train):
        best = run.result.get("best_step")
        wide = plots.learning_curve(train, held_out, best)
        narrow = plots.learning_curve(train, held_out, best, width=420)
        caption = "Loss of each step (faint), its moving mean, and the loss on held-out rows."
        description = f"{_said(train, 'Training loss')} {_said(held_out, 'Held-out loss')}".strip()
        write_png(wide, folder / "learning_curve.png")
        figures["learning_curve"] = Figure(
            svg(wide, f"{own}curve", "Learning curve", description),
            caption,
            svg(narrow, f"{own}curve-narrow", "Learning curve", description),
        )
    rates, norms = _points(run.train, "learning_rate"), _points(run.train, "grad_norm")
    if _any(rates) or _any(norms):
        caption = "Learning rate, and the gradient's norm before clipping."
        description = f"{_said(rates, 'Learning rate')} {_said(norms, 'Gradient norm')}".strip()
        drawing = plots.schedule(rates, norms)
        figures["schedule"] = _one(
            drawing, "schedule", "Learning rate and gradient norm", description, caption, folder
        )
    speeds = _points(run.train, "real_tokens_per_second")
    if _any(speeds):
        caption = "Real tokens per second of each step; padding is not counted."
        drawing = plots.throughput(speeds)
        figures["throughput"] = _one(
            drawing, "throughput", "Throughput", _said(speeds, "Throughput"), caption, folder
        )
    return figures


def _one(
    drawing: Drawing, name: str, title: str, description: str, caption: str, folder: Path
) -> Figure:
    write_png(drawing, folder / f"{name}.png")
    return Figure(svg(drawing, name, title, description), caption)


def _said(points: plots.Points, name: str) -> str:
    """A curve in words, for who cannot see it."""
    known = [(s, v) for s, v in zip(*points, strict=True) if math.isfinite(v)]
    if not known:
        return ""
    (first, start), (last, end) = known[0], known[-1]
    return f"{name}: {number(start, 3)} at step {first:g}, {number(end, 3)} at step {last:g}."
