"""How a figure gets onto the page and beside it: inline SVG in the page's colours, PNG on white.

A figure is drawn by a function from a matplotlib `Figure` and a `Palette`. For the page the
palette holds placeholders that become CSS variables, so that one drawing serves the light and
the dark theme; for PNG files it holds the light theme's colours.
"""

import io
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.files.whole import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Palette:
    """Colours by what they are for. The series stay apart for colour-blind readers."""

    ink: str
    muted: str
    rule: str
    paper: str
    first: str
    second: str
    third: str
    fourth: str


# Blue, vermilion, green and purple of Okabe and Ito's set, which common colour-blindness keeps
# apart, darkened until text of them can be read.
LIGHT = Palette(
    *("#1b1f24", "#59636e", "#d8dde3", "#ffffff"), *("#0067a8", "#c24a00", "#00785a", "#a0427f")
)
_PLACEHOLDERS = Palette(*(f"#01a0b{digit}" for digit in range(1, 9)))


@dataclass(frozen=True)
class Drawing:
    """A figure, not yet drawn: a function of a palette, and a size in CSS pixels."""

    draw: Callable[["Figure", Palette], None]
    width: int
    height: int


def _figure(drawing: Drawing, palette: Palette) -> "Figure":
    from matplotlib.figure import Figure

    # 72 points an inch: one CSS pixel of the page is one unit of the SVG, and font sizes are px.
    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), dpi=72, layout="constrained")
    drawing.draw(figure, palette)
    return figure


def svg(drawing: Drawing, name: str, title: str, description: str) -> str:
    """The figure as an inline `<svg>`: text stays text, colours are CSS variables.

    `name` makes its ids its own on a page with several figures; title and description are
    what a screen reader says. The variables are --ink, --muted, --rule, --paper, and --series-1
    to --series-4.
    """
    import matplotlib

    buffer = io.StringIO()
    # Text as text takes the page's own font; the salt makes the same figure the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = _figure(drawing, _PLACEHOLDERS)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    # A style element would hold for the whole page, not for this figure.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    variables = ("--ink", "--muted", "--rule", "--paper", *(f"--series-{n}" for n in range(1, 5)))
    for colour, variable in zip(astuple(_PLACEHOLDERS), variables, strict=True):
        body = body.replace(colour, f"var({variable})")
    head = (
        f'<svg viewBox="0 0 {drawing.width} {drawing.height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + body.strip()


def write_png(drawing: Drawing, path: Path) -> Path:
    """The figure as a PNG on white, two device pixels for each CSS pixel.

    Raises OutputError where it cannot be written.
    """
    figure = _figure(drawing, LIGHT)

    def fill(new: Path) -> None:
        figure.savefig(new, format="png", dpi=144, facecolor=LIGHT.paper)

    return write_file(path, fill, what="figure", overwrite=True)
