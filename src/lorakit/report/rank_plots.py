"""The figures of a search for a rank, from plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorakit.report.drawing import Drawing, Palette
from lorakit.report.plots import dress, legend, smoothed, tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle


@dataclass(frozen=True)
class LossCurve:
    """The training loss of a rank, step by step, and what was measured on held-out rows."""

    name: str
    place: int
    train: Sequence[float]
    held_out: Sequence[tuple[float, float]] = field(default=())


def leaving(courses: Sequence[LossCurve], *, width: int = 880) -> Drawing:
    """Above: smoothed training losses. Below: each less that of the highest rank, same batches.

    Ranks that have not used up their capacity lie on zero in the lower panel; where one leaves
    it upwards, it has.
    """

    def draw(figure: "Figure", palette: Palette) -> None:
        shades = (palette.second, palette.third, palette.fourth, palette.muted)
        upper, lower = figure.subplots(2, 1, sharex=True)
        reference = courses[-1]
        for course in courses:
            shade = palette.first if course is reference else shades[course.place % 4]
            line = "-" if course.place < 4 or course is reference else "--"
            steps = range(1, len(course.train) + 1)
            upper.plot(
                steps, smoothed(course.train), color=shade, linewidth=1.6, linestyle=line,
                label=course.name,
            )  # fmt: skip
            if course.held_out:
                upper.plot(
                    *zip(*course.held_out, strict=True), color=shade, linestyle="none",
                    marker="o", markersize=6, markerfacecolor=palette.paper, markeredgewidth=1.6,
                )  # fmt: skip
            if course is not reference:
                both = [a - b for a, b in zip(course.train, reference.train, strict=False)]
                lower.plot(
                    range(1, len(both) + 1), smoothed(both), color=shade, linewidth=1.6,
                    linestyle=line,
                )  # fmt: skip
        lower.axhline(0, color=palette.first, linewidth=1.2)
        dress(upper, palette, ylabel="loss")
        dress(lower, palette, ylabel=f"less {reference.name}")
        lower.set_xlabel("step")
        legend(figure, palette)

    return Drawing(draw, width, 430)


def heat(
    rows: Sequence[str], columns: Sequence[int], values: Sequence[Sequence[float]], *,
    label: str, width: int = 880,
) -> Drawing:  # fmt: skip
    """A map over layers (across) and modules (down), dark for much."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        highest = max((v for row in values for v in row), default=1.0) or 1.0
        # Rectangles and not an image: their colours are those of the page, light or dark.
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.add_patch(
                    _cell(j, i, palette.first, alpha=0.06 + 0.94 * max(0.0, value) / highest)
                )
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], labels=list(rows))
        step = max(1, len(columns) // 12)
        shown = range(0, len(columns), step)
        axes.set_xticks([j + 0.5 for j in shown], labels=[str(columns[j]) for j in shown])
        axes.tick_params(colors=palette.muted, labelsize=12, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(f"layer; {label}, darkest {highest:.3g}", color=palette.muted, fontsize=12)

    return Drawing(draw, width, 110 + 26 * len(rows))


def _cell(x: float, y: float, colour: str, *, alpha: float) -> "Rectangle":
    from matplotlib import patches

    return patches.Rectangle(
        (x + 0.04, y + 0.06), 0.92, 0.88, facecolor=colour, alpha=alpha, linewidth=0
    )


def decay(curves: Sequence[tuple[str, Sequence[float]]], *, width: int = 440) -> Drawing:
    """Singular values by their place, over the largest, the median module of each kind."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        shades = (palette.first, palette.second, palette.third, palette.fourth)
        for i, (name, values) in enumerate(curves):
            axes.plot(
                range(1, len(values) + 1), values, color=shades[i % 4], linewidth=1.6,
                linestyle="-" if i < 4 else "--", label=name,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        dress(axes, palette, ylabel="singular value / largest")
        axes.set_xlabel("place")
        legend(figure, palette)

    return Drawing(draw, width, 340)


def rates(tried: Sequence[tuple[int, float, float]], chosen: float, *, width: int = 440) -> Drawing:
    """Loss on held-out rows against the learning rate, a line a round; the chosen one ringed."""

    def draw(figure: "Figure", palette: Palette) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes = figure.add_subplot()
        shades = (palette.first, palette.second, palette.third, palette.fourth)
        for number in sorted({n for n, _, _ in tried}):
            points = sorted((rate, loss) for n, rate, loss in tried if n == number)
            shade = shades[(number - 1) % 4]
            axes.plot(
                *zip(*points, strict=True), color=shade, linewidth=2.0, marker="o",
                markersize=5.5, markerfacecolor=palette.paper, label=f"round {number}",
            )  # fmt: skip
            for rate, loss in points:
                if rate == chosen:
                    axes.plot(
                        rate, loss, marker="o", markersize=13, linestyle="none",
                        markerfacecolor="none", markeredgecolor=shade, markeredgewidth=1.6,
                    )  # fmt: skip
        dress(axes, palette, ylabel="held-out loss", whole=False)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.set_xlabel("learning rate")
        axes.margins(x=0.06, y=0.12)
        legend(figure, palette)

    return Drawing(draw, width, 340)


def costs(parts: Sequence[tuple[str, float]], *, width: int = 880) -> Drawing:
    """The cost of the search by phase, in runs at the highest rank, as one stacked bar."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        shades = (palette.first, palette.second, palette.third, palette.fourth, palette.muted)
        left = 0.0
        for i, (name, share) in enumerate(parts):
            axes.barh(
                0, share, left=left, color=shades[i % 5], height=0.5,
                edgecolor=palette.paper, label=f"{name}: {share:.2f}",
            )  # fmt: skip
            left += share
        dress(axes, palette, ylabel="", whole=False)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_xlim(0, max(1.0, 1.02 * left))
        axes.set_xlabel("runs at the highest rank, evaluation included")
        legend(figure, palette)

    return Drawing(draw, width, 170)
