"""The figures of a comparison, from plain numbers. An arm's colour is that of its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorakit.report.drawing import Drawing, Palette
from lorakit.report.plots import dress, legend, tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Curve:
    """One arm over its evaluations: a mean, and the lowest and highest of the seeds."""

    name: str
    place: int
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Point:
    """One arm in a picture of two quantities, with the ends of its interval."""

    name: str
    place: int
    x: float
    y: float
    low: float
    high: float


def colour(palette: Palette, place: int) -> str:
    """The arm's colour: the reference, first on the page, is vermilion."""
    order = (palette.second, palette.first, palette.third, palette.fourth)
    return order[place % len(order)]


def course(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    whole: bool = False,
    width: int = 880,
    height: int = 330,
) -> Drawing:
    """Curves with bands over the seeds; `whole` where x counts steps."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            shade = colour(palette, curve.place)
            if curve.low:
                axes.fill_between(curve.x, curve.low, curve.high, color=shade, alpha=0.18, lw=0)
            axes.plot(curve.x, curve.mean, label=curve.name, **_line(palette, curve.place))
        dress(axes, palette, ylabel=ylabel, whole=whole)
        axes.set_xlabel(xlabel)
        axes.margins(y=0.08)
        legend(figure, palette)

    return Drawing(draw, width, height)


def learning_and_forgetting(curves: Sequence[Curve], *, width: int = 880) -> Drawing:
    """How far each arm is from the base (up) against how far its loss has fallen (to the right).

    x is held-out loss, drawn falling to the right; the mean of the seeds at each evaluation.
    """

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        for curve in curves:
            axes.plot(curve.x, curve.mean, label=curve.name, **_line(palette, curve.place))
            axes.annotate(
                "end", (curve.x[-1], curve.mean[-1]), textcoords="offset points", xytext=(7, 5),
                color=colour(palette, curve.place), fontsize=12,
            )  # fmt: skip
        dress(axes, palette, ylabel="forgetting: KL from the base (nats per token)", whole=False)
        axes.set_xlabel("learning: held-out loss (nats per token), lower to the right")
        axes.invert_xaxis()
        axes.margins(x=0.06, y=0.08)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if _lowest(curves) <= 0 else 0.0)
        legend(figure, palette)

    return Drawing(draw, width, 340)


def trade_off(
    by_parameters: Sequence[Point], by_memory: Sequence[Point], *, width: int = 880
) -> Drawing:
    """Held-out loss against trained parameters and against peak memory, with intervals.

    Side by side where there is room, else one above the other.
    """
    wide = width >= 700

    def draw(figure: "Figure", palette: Palette) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        shape = (1, 2) if wide else (2, 1)
        panels: Any = figure.subplots(*shape, sharey=wide, squeeze=False).ravel()
        for axes, points, label in (
            (panels[0], by_parameters, "trained parameters (millions)"),
            (panels[1], by_memory, "peak memory (GB)"),
        ):
            for point in points:
                shade = colour(palette, point.place)
                axes.errorbar(
                    point.x, point.y, yerr=[[point.y - point.low], [point.high - point.y]],
                    color=shade, marker=_MARKERS[point.place % 4], markersize=8.0, capsize=4,
                    elinewidth=1.6, linestyle="none",
                    label=point.name if axes is panels[0] else None,
                )  # fmt: skip
            dress(axes, palette, ylabel="held-out loss (nats per token)", whole=False)
            axes.set_xlabel(label)
            axes.margins(x=0.18, y=0.15)
        if wide:
            panels[1].set_ylabel("")
        panels[0].set_xscale("log")
        panels[0].xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0), numticks=8))
        panels[0].xaxis.set_minor_locator(NullLocator())
        panels[0].xaxis.set_major_formatter(FuncFormatter(tick))
        panels[1].set_xlim(left=0)
        legend(figure, palette)

    return Drawing(draw, width, 320 if wide else 560)


def probes(curves: Sequence[Curve], chosen: Sequence[tuple[int, float, float]]) -> Drawing:
    """Loss on the validation rows against the learning rate, and each arm's choice, ringed."""

    def draw(figure: "Figure", palette: Palette) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes = figure.add_subplot()
        for curve in curves:
            axes.plot(curve.x, curve.mean, label=curve.name, **_line(palette, curve.place))
        for place, rate, loss in chosen:
            axes.plot(
                rate, loss, marker="o", markersize=14, linestyle="none", markerfacecolor="none",
                markeredgecolor=colour(palette, place), markeredgewidth=1.6,
            )  # fmt: skip
        dress(axes, palette, ylabel="loss on validation rows (nats per token)", whole=False)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.set_xlabel("learning rate")
        axes.margins(x=0.06, y=0.12)
        legend(figure, palette)

    return Drawing(draw, 440, 320)


def _line(palette: Palette, place: int) -> dict[str, Any]:
    return {
        "color": colour(palette, place),
        "linewidth": 2.0,
        "marker": _MARKERS[place % 4],
        "markersize": 5.5,
        "markerfacecolor": palette.paper,
        "markeredgewidth": 1.6,
        "linestyle": "-" if place < 4 else "--",
    }


def _lowest(curves: Sequence[Curve]) -> float:
    return min(min(curve.mean) for curve in curves)
