import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import Page

import lorakit.report
from lorakit.errors import OutputError
from lorakit.report import plots
from lorakit.report.drawing import LIGHT, svg, write_png

TRAIN = ([1.0, 2.0, 3.0], [2.0, math.nan, 0.2])


def test_svg_is_in_the_pages_colours_and_type() -> None:
    text = svg(
        plots.learning_curve(TRAIN, ([0.0, 3.0], [2.5, 0.3]), 3), "c", "A <b>", "Words & more"
    )
    Page(text)
    assert not re.search(r"#[0-9a-f]{6}\b", text), "a colour that no theme knows"
    for variable in ("--ink", "--muted", "--rule", "--paper", "--series-1", "--series-2"):
        assert f"var({variable})" in text
    assert "font-family" not in text
    assert "<style" not in text
    assert "A &lt;b&gt;" in text
    assert "Words &amp; more" in text
    for words in ("loss (nats per token)", "step", "held-out", "best, kept"):
        assert words in Page(text).text


def test_two_figures_share_no_id() -> None:
    drawing = plots.throughput(([1.0, 2.0], [10.0, 20.0]))
    first, second = (
        {a["id"] for _, a in Page(svg(drawing, name, "t", "d")).tags if "id" in a}
        for name in ("one", "two")
    )
    assert first
    assert not first & second


def test_log_axis_only_where_it_helps() -> None:
    wide = svg(plots.learning_curve(TRAIN, ([], [])), "c", "t", "d")
    flat = svg(plots.learning_curve(([1.0, 2.0], [2.0, 1.9]), ([], [])), "c", "t", "d")
    assert {">0.2<", ">0.5<", ">1<", ">2<"} <= set(re.findall(r">[\d.]+<", wide))
    assert ">1.95<" in flat


values = st.lists(
    st.one_of(st.just(math.nan), st.floats(0, 1e9), st.just(0.0)), min_size=1, max_size=12
).filter(lambda v: any(math.isfinite(x) for x in v))


@given(values, values)
@settings(max_examples=10, deadline=None)
def test_any_curve_can_be_drawn(first: list[float], second: list[float]) -> None:
    points = [([float(i) for i in range(len(v))], v) for v in (first, second)]
    for drawing in (
        plots.learning_curve(*points),
        plots.schedule(*points),
        plots.throughput(points[0]),
    ):
        Page(svg(drawing, "c", "t", "d"))


def test_many_steps_stay_few_points() -> None:
    steps = [float(i) for i in range(20_000)]
    small = len(svg(plots.throughput((steps[:500], steps[:500])), "c", "t", "d"))
    assert len(svg(plots.throughput((steps, steps)), "c", "t", "d")) < 1.5 * small


def test_smoothing_by_hand() -> None:
    assert plots.smoothed([1.0, 2.0, 6.0, 4.0]) == [1.0, 3.0, 4.0, 4.0]
    assert plots.smoothed([1.0, math.nan, 3.0]) == [1.0, 2.0, 3.0]
    assert plots.smoothed([]) == []


@given(st.lists(st.floats(-10, 10), max_size=100), st.floats(-3, 3), st.floats(-3, 3))
def test_smoothing_keeps_a_line(some: list[float], slope: float, start: float) -> None:
    line = [start + slope * i for i in range(len(some))]
    assert plots.smoothed(line) == pytest.approx(line, abs=1e-9)
    smooth = plots.smoothed(some)
    assert all(min(some) - 1e-9 <= v <= max(some) + 1e-9 for v in smooth)


def test_png_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(plots.throughput(([1.0], [2.0])), tmp_path / "plots" / "a.png")


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_both_themes() -> None:
    """WCAG 2.2 AA: 4.5 for text on every ground it stands on, 3 for curves."""
    css = (Path(lorakit.report.__file__).parent / "templates" / "page.css").read_text()
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media")[:2]
    ]
    assert all(len(theme) == 15 for theme in themes)
    assert themes[0]["series-1"] == LIGHT.first
    for theme in themes:
        for ground in ("paper", "tint", "good-tint", "bad-tint", "mid-tint"):
            for front, least in (
                ("ink", 4.5), ("muted", 4.5), *((f"series-{n}", 3) for n in range(1, 5)),
                *([("good", 4.5)] if ground in ("paper", "good-tint") else []),
                *([("bad", 4.5)] if ground in ("paper", "bad-tint", "mid-tint") else []),
                *([("mid", 4.5)] if ground == "mid-tint" else []),
            ):  # fmt: skip
                a, b = sorted((_luminance(theme[front]), _luminance(theme[ground])))
                assert (b + 0.05) / (a + 0.05) >= least, (front, ground)
