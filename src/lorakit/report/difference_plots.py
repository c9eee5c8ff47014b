"""Differences with their intervals beside the margin within which two things count as equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.report.drawing import Drawing, Palette
from lorakit.report.plots import dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Difference:
    """A difference from a reference.

    Attributes:
        name: of what is held against the reference.
        word: what may be said of it.
        mean, low, high: the difference and its interval; no ends where there is no interval.
        margin: within which it counts as equal; None where none is known.
    """

    name: str
    word: str
    mean: float
    low: float | None
    high: float | None
    margin: float | None


def differences(items: Sequence[Difference], *, xlabel: str, width: int = 880) -> Drawing:
    """One line each: the estimate, its interval, and the band of the margin around 0."""

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.add_subplot()
        for at, item in enumerate(items):
            if item.margin is not None:
                axes.fill_betweenx(
                    [at - 0.4, at + 0.4], -item.margin, item.margin,
                    color=palette.third, alpha=0.18, linewidth=0,
                )  # fmt: skip
            ends = [item.mean if end is None else end for end in (item.low, item.high)]
            told = item.word != "cannot be told"
            axes.errorbar(
                item.mean, at, xerr=[[item.mean - ends[0]], [ends[1] - item.mean]],
                color=palette.first, marker="o", markersize=8.0, capsize=4, elinewidth=1.6,
                markerfacecolor=palette.first if told else palette.paper, markeredgewidth=1.6,
                linestyle="none",
            )  # fmt: skip
        axes.axvline(0, color=palette.muted, linewidth=1.2, zorder=0)
        dress(axes, palette, ylabel="", whole=False)
        axes.set_yticks(range(len(items)), labels=[f"{i.name}: {i.word}" for i in items])
        axes.set_ylim(len(items) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)

    return Drawing(draw, width, 110 + 44 * len(items))
