"""Charts as inline SVG and as files."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.report.charts import (
    CHARACTER,
    Axis,
    Bar,
    Drawing,
    Scale,
    Series,
    bar_chart,
    line_chart,
    smoothed,
    standalone,
    tick_labels,
    ticks,
    x_axis,
)

numbers = st.floats(-1e4, 1e4, allow_nan=False).map(lambda v: round(v, 4))


@given(numbers, st.floats(1e-5, 1e5))
def test_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span)
    assert 1 <= len(found) <= 7
    assert all(low - slack <= value <= low + span + slack for value in found)
    labels = tick_labels(found)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 400, ["0", "100", "200", "300", "400"]),
        (0.0047, 0.0111, ["0.006", "0.008", "0.010"]),
        (27.1, 28.6, ["27.25", "27.50", "27.75", "28.00", "28.25", "28.50"]),
    ],
)
def test_tick_labels(low: float, high: float, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high)) == labels


@given(st.lists(st.tuples(numbers, st.one_of(numbers, st.just(math.nan))), max_size=40))
def test_every_finite_point_lies_inside_the_drawing(points: list[tuple[float, float]]) -> None:
    series = Series(name="a", x=[p[0] for p in points], y=[p[1] for p in points], tone="phone",
                    dots=True)  # fmt: skip
    drawn = line_chart(
        title="t", description="d", x=Axis(label="x"), y=Axis(label="y"), series=[series]
    )
    finite = [p for p in points if not math.isnan(p[1])]
    if not finite:
        assert drawn is None
        return
    root = ElementTree.fromstring(str(drawn))
    circles = root.findall("circle")
    assert len(circles) == len(finite)
    assert all(0 <= float(c.get("cx", "-1")) <= 480 for c in circles)
    assert all(0 <= float(c.get("cy", "-1")) <= 300 for c in circles)


def test_higher_is_higher_and_axes_have_units() -> None:
    series = Series(name="student", x=[1, 2], y=[20, 30], tone="phone", dots=True)
    drawn = line_chart(
        title="Quality", description="", x=Axis(label="step"), y=Axis(label="PSNR", unit="dB"),
        series=[series],
    )  # fmt: skip
    low, high = ElementTree.fromstring(str(drawn)).findall("circle")
    assert float(high.get("cy", "")) < float(low.get("cy", ""))
    assert float(high.get("cx", "")) > float(low.get("cx", ""))
    assert "PSNR (dB)" in str(drawn) and "student: 30 dB at step 2" in str(drawn)


def test_long_series_are_thinned_and_keep_their_end() -> None:
    series = Series(name="a", x=list(range(50_000)), y=list(range(50_000)), tone="phone")
    drawn = line_chart(
        title="t", description="d", x=Axis(label="x"), y=Axis(label="y"), series=[series]
    )
    line = ElementTree.fromstring(str(drawn)).find("polyline")
    assert line is not None
    points = line.get("points", "").split()
    assert len(points) < 700 and float(points[-1].split(",")[0]) > 450


def test_text_of_a_line_chart_is_escaped() -> None:
    series = Series(name="<b>", x=[1], y=[1], tone="phone")
    drawn = line_chart(title='"><script>', description="<i>", x=Axis(label="<x>"),
                  y=Axis(label="&y"), series=[series])  # fmt: skip
    assert not any(markup in str(drawn) for markup in ("<script>", "<b>", "<x>"))
    assert ElementTree.fromstring(str(drawn)).get("aria-label", "").startswith('"><script>')


def test_smoothing_is_a_mean_over_the_last_values() -> None:
    assert smoothed([1, 2, 3, 4, 5], 2) == [1, 1.5, 2.5, 3.5, 4.5]


values = st.floats(-1e9, 1e9, allow_nan=False)


def bars_of(*rows: Bar) -> ElementTree.Element:
    return ElementTree.fromstring(str(bar_chart(title="t", description="d", bars=rows)))


def widths(root: ElementTree.Element, tone: str) -> list[float]:
    return [float(r.get("width", "")) for r in root.iter("rect") if r.get("class") == tone]


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_every_bar_lies_inside_the_drawing(pairs: list[tuple[float, float]]) -> None:
    root = bars_of(*(Bar(label="a", value=v, bad=p, text="$1,000,000.00") for v, p in pairs))
    for rect in root.iter("rect"):
        left, width = float(rect.get("x", "")), float(rect.get("width", ""))
        assert width >= 0 and left + width < 480 - 80  # the value stands right of it
    height = float(root.get("viewBox", "").split()[3])
    assert all(float(r.get("y", "")) + 14 <= height for r in root.iter("rect"))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_lengths_are_as_the_values_and_waste_is_at_the_end(scale: float) -> None:
    root = bars_of(
        Bar(label="a", value=4 * scale, bad=scale, text="4"),
        Bar(label="b", value=2 * scale, text="2"),
        Bar(label="c", value=-scale, bad=scale, text="-1"),
    )
    good, (bad,) = widths(root, "bar phone"), widths(root, "bar bad")
    assert good[0] + bad == pytest.approx(2 * good[1], abs=0.02)
    assert bad == pytest.approx(good[0] / 3, abs=0.02)
    assert good[2] == 0


def test_text_is_escaped_and_long_labels_are_whole_in_the_title() -> None:
    label = "<script>alert('a very long name')</script>"
    drawing = bar_chart(
        title='"><b>', description="<i>", bars=[Bar(label=label, value=1, text="<1")]
    )
    assert not any(markup in str(drawing) for markup in ("<script>", "<b>", "<i>"))
    root = ElementTree.fromstring(str(drawing))
    assert next(root.iter("title")).text == f"{label}: <1"
    assert next(root.iter("text")).text == "<script>alert('a …"


def test_an_empty_series_has_no_chart() -> None:
    assert bar_chart(title="t", description="d", bars=[]) is None
    assert widths(bars_of(Bar(label="a", value=0, text="$0.00")), "bar phone") == [0]


def test_labels_of_an_axis_never_touch() -> None:
    scale = Scale(low=0, high=1e9, start=0, end=300)
    drawn = ElementTree.fromstring(f"<g>{x_axis(scale, Axis(label='x'), 100)}</g>")
    at = [(float(t.get("x", "")), t.text or "") for t in drawn.iter("text")][:-1]
    for (a, left), (b, right) in pairwise(at):
        assert b - a > 7 * (len(left) + len(right)) / 2


def test_the_last_label_of_an_axis_stays_within_the_drawing() -> None:
    scale = Scale(low=0.0039, high=0.0065, start=66, end=466)  # of 480
    drawn = ElementTree.fromstring(f"<g>{x_axis(scale, Axis(label='USD'), 254)}</g>")
    (last,) = [t for t in drawn.iter("text") if t.text == "0.0065"]
    assert float(last.get("x", "")) + len("0.0065") * CHARACTER / 2 <= 480


def test_a_file_of_charts_uses_no_css_variables_and_holds_every_chart() -> None:
    series = Series(name="a", x=[1, 2], y=[1, 2], tone="phone")
    lines = line_chart(title="t", description="d", x=Axis(label="x"), y=Axis(label="y"),
                       series=[series])  # fmt: skip
    rows = bar_chart(title="u", description="e", bars=[Bar(label="a", value=1, text="1")])
    assert isinstance(lines, Drawing) and isinstance(rows, Drawing)
    drawing = standalone([("One & all", "", lines), ("Two", "", rows)])
    assert "var(" not in drawing and "#" in drawing
    root = ElementTree.fromstring(drawing)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 1
    height = float(root.get("height", ""))
    assert lines.height + rows.height < height < lines.height + rows.height + 120
