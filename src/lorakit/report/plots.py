"""The figures of a run, from plain numbers. Object-oriented matplotlib, no pyplot."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorakit.report.drawing import Drawing, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]
"""Steps and values, equally long; a value may be NaN and is then not drawn."""

# More points than a figure has pixels only make the page heavier.
_MOST_POINTS = 500
# From this factor between the ends of a curve, a linear axis flattens its last part.
_LOG_FROM = 5


def learning_curve(
    train: Points, held_out: Points, best_step: int | None = None, *, width: int = 880
) -> Drawing:
    """Loss in nats per token against the step: each step's, their smoothed mean, held-out rows.

    The loss axis is logarithmic where the curve spans a factor of 5 or more.
    """

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        steps, values = _thin(train)
        smooth = smoothed(values)
        axes.plot(steps, values, color=palette.first, alpha=0.28, linewidth=0.9)
        axes.plot(steps, smooth, color=palette.first, linewidth=2.0, label="training, smoothed")
        axes.plot(
            *held_out, color=palette.second, linewidth=2.0, marker="o", markersize=6.0,
            markerfacecolor=palette.paper, markeredgewidth=1.8, label="held-out",
        )  # fmt: skip
        curve = [v for v in (*smooth, *held_out[1]) if math.isfinite(v)]
        if curve and min(curve) > 0 and max(curve) / min(curve) >= _LOG_FROM:
            log_scale(axes)
            shown = [v for v in (*values, *held_out[1]) if math.isfinite(v) and v > 0]
            axes.set_ylim(0.85 * min(shown), 1.2 * max(shown))
        best = [(s, v) for s, v in zip(*held_out, strict=True) if s == best_step]
        if best:
            axes.plot(*best[-1], "o", color=palette.second, markersize=8.0, label="best, kept")
        dress(axes, palette, ylabel="loss (nats per token)")
        axes.set_xlabel("step")
        legend(figure, palette)

    return Drawing(draw, width, 330)


def schedule(rates: Points, norms: Points) -> Drawing:
    """The learning rate and, under it, the gradient's norm before clipping, against the step."""

    def draw(figure: "Figure", palette: Palette) -> None:
        present = [
            (points, label, "log" if label.startswith("gradient") else "linear")
            for points, label in ((rates, "learning rate"), (norms, "gradient norm"))
            if any(math.isfinite(v) for v in points[1])
        ]
        axes: Any = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (points, label, scale) in zip(axes, present, strict=True):
            steps, values = _thin(points)
            panel.plot(steps, values, color=palette.first, linewidth=1.6)
            finite = [v for v in values if math.isfinite(v)]
            if scale == "log" and min(finite) > 0 and max(finite) / min(finite) >= _LOG_FROM:
                log_scale(panel)
            else:
                panel.set_ylim(bottom=0)
            dress(panel, palette, ylabel=label)
        axes[-1].set_xlabel("step")

    return Drawing(draw, 440, 300)


def throughput(speeds: Points) -> Drawing:
    """Real tokens (no padding) a second against the step, with the median."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        steps, values = _thin(speeds)
        axes.plot(steps, values, color=palette.first, linewidth=1.4, label="each step")
        finite = sorted(v for v in speeds[1] if math.isfinite(v))
        median = finite[len(finite) // 2]
        axes.axhline(
            median,
            color=palette.second,
            linewidth=1.6,
            dashes=(5, 3),
            label=f"median {median:,.0f}",
        )
        axes.set_ylim(0, 1.05 * finite[-1] or 1)
        dress(axes, palette, ylabel="real tokens per second")
        axes.set_xlabel("step")
        legend(figure, palette)

    return Drawing(draw, 440, 300)


def smoothed(values: Sequence[float]) -> list[float]:
    """The centred moving mean over about a fifteenth of the points, NaN left out of it."""
    half = max(1, len(values) // 30)
    means = []
    for index in range(len(values)):
        # The window shrinks evenly at both ends, so that it stays centred.
        reach = min(half, index, len(values) - 1 - index)
        window = [v for v in values[index - reach : index + reach + 1] if math.isfinite(v)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _thin(points: Points) -> tuple[list[float], list[float]]:
    """At most `_MOST_POINTS` points: means over equal runs of steps."""
    steps, values = points
    stride = -(-len(steps) // _MOST_POINTS) or 1
    if stride == 1:
        return list(steps), list(values)
    thin_steps, thin_values = [], []
    for start in range(0, len(steps), stride):
        some = [v for v in values[start : start + stride] if math.isfinite(v)]
        run = steps[start : start + stride]
        thin_steps.append(sum(run) / len(run))
        thin_values.append(sum(some) / len(some) if some else math.nan)
    return thin_steps, thin_values


def legend(figure: "Figure", palette: Palette) -> None:
    """The names of the curves, above the axes."""
    # Above the axes and not in them: no curve, whatever it does, runs into it.
    figure.legend(
        loc="outside upper left", ncols=3, frameon=False, labelcolor=palette.ink,
        fontsize=12, handlelength=1.6, columnspacing=1.6, borderpad=0.2,
    )  # fmt: skip


def log_scale(axes: "Axes") -> None:
    """A logarithmic value axis with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def tick(value: float, _: int) -> str:
    """The text of a tick: no needless zeros, thousands apart."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def dress(axes: "Axes", palette: Palette, *, ylabel: str, whole: bool = True) -> None:
    """The house style: no box, faint horizontal rules, quiet ticks; `whole` for steps on x."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.muted)
    axes.grid(axis="y", color=palette.rule, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=palette.muted, labelsize=12, length=0, pad=6)
    axes.tick_params(axis="x", length=4)
    axes.set_ylabel(ylabel, color=palette.muted, fontsize=12, labelpad=8)
    axes.xaxis.label.set(color=palette.muted, fontsize=12)
    steps = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole, steps=steps))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.margins(x=0.02)
