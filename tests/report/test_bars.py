"""Inline SVG bars."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.report.bars import Bar, bars

values = st.floats(-1e9, 1e9, allow_nan=False)


def drawn(*rows: Bar) -> ElementTree.Element:
    return ElementTree.fromstring(str(bars(title="t", description="d", rows=rows)))


def widths(root: ElementTree.Element, tone: str) -> list[float]:
    return [float(r.get("width", "")) for r in root.iter("rect") if r.get("class") == tone]


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_every_bar_lies_inside_the_drawing(pairs: list[tuple[float, float]]) -> None:
    root = drawn(*(Bar(label="a", value=v, part=p, said="$1,000,000.00") for v, p in pairs))
    for rect in root.iter("rect"):
        left, width = float(rect.get("x", "")), float(rect.get("width", ""))
        assert width >= 0 and left + width < 480 - 80  # the value stands right of it
    height = float(root.get("viewBox", "").split()[3])
    assert all(float(r.get("y", "")) + 14 <= height for r in root.iter("rect"))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_lengths_are_as_the_values_and_waste_is_at_the_end(scale: float) -> None:
    root = drawn(
        Bar(label="a", value=4 * scale, part=scale, said="4"),
        Bar(label="b", value=2 * scale, said="2"),
        Bar(label="c", value=-scale, part=scale, said="-1"),
    )
    good, bad = widths(root, "fill-phone"), widths(root, "fill-bad")
    assert good[0] + bad[0] == pytest.approx(2 * good[1], abs=0.02)
    assert bad[0] == pytest.approx(good[0] / 3, abs=0.02)
    assert (good[2], bad[2], bad[1]) == (0, 0, 0)


def test_text_is_escaped_and_long_labels_are_whole_in_the_title() -> None:
    label = "<script>alert('a very long name')</script>"
    drawing = bars(title='"><b>', description="<i>", rows=[Bar(label=label, value=1, said="<1")])
    assert "<script>" not in drawing and "<b>" not in drawing and "<i>" not in drawing
    root = ElementTree.fromstring(str(drawing))
    assert next(root.iter("title")).text == f"{label}: <1"
    assert next(root.iter("text")).text == "<script>alert('a …"


def test_nothing_is_drawn_of_nothing() -> None:
    assert bars(title="t", description="d", rows=[]) == ""
    assert widths(drawn(Bar(label="a", value=0, said="$0.00")), "fill-phone") == [0]
