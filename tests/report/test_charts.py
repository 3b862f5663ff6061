"""Inline SVG charts."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.report.charts import Axis, Series, chart, smoothed, tick_labels, ticks

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
    drawn = chart(title="t", description="d", x=Axis(label="x"), y=Axis(label="y"), series=[series])
    finite = [p for p in points if not math.isnan(p[1])]
    if not finite:
        assert drawn == ""
        return
    root = ElementTree.fromstring(str(drawn))
    circles = root.findall("circle")
    assert len(circles) == len(finite)
    assert all(0 <= float(c.get("cx", "-1")) <= 480 for c in circles)
    assert all(0 <= float(c.get("cy", "-1")) <= 300 for c in circles)


def test_higher_is_higher_and_axes_have_units() -> None:
    series = Series(name="student", x=[1, 2], y=[20, 30], tone="phone", dots=True)
    drawn = chart(
        title="Quality", description="", x=Axis(label="step"), y=Axis(label="PSNR", unit="dB"),
        series=[series],
    )  # fmt: skip
    low, high = ElementTree.fromstring(str(drawn)).findall("circle")
    assert float(high.get("cy", "")) < float(low.get("cy", ""))
    assert float(high.get("cx", "")) > float(low.get("cx", ""))
    assert "PSNR (dB)" in drawn and "student: 30 dB at step 2" in drawn


def test_long_series_are_thinned_and_keep_their_end() -> None:
    series = Series(name="a", x=list(range(50_000)), y=list(range(50_000)), tone="phone")
    drawn = chart(title="t", description="d", x=Axis(label="x"), y=Axis(label="y"), series=[series])
    line = ElementTree.fromstring(str(drawn)).find("polyline")
    assert line is not None
    points = line.get("points", "").split()
    assert len(points) < 700 and float(points[-1].split(",")[0]) > 450


def test_text_is_escaped() -> None:
    series = Series(name="<b>", x=[1], y=[1], tone="phone")
    drawn = chart(title='"><script>', description="<i>", x=Axis(label="<x>"),
                  y=Axis(label="&y"), series=[series])  # fmt: skip
    assert "<script>" not in drawn and "<b>" not in drawn and "<x>" not in drawn
    assert ElementTree.fromstring(str(drawn)).get("aria-label", "").startswith('"><script>')


def test_smoothing_is_a_mean_over_the_last_values() -> None:
    assert smoothed([1, 2, 3, 4, 5], 2) == [1, 1.5, 2.5, 3.5, 4.5]
