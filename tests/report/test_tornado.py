"""The tornado: which inputs it has, and that its bars are as long as what they do."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.roi import made_up
from turbo_vaed.config.schema import RoiParams
from turbo_vaed.report.formatting import short_usd
from turbo_vaed.report.tornado import tornado, tornado_svg
from turbo_vaed.roi.inputs import INPUTS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def assumptions() -> RoiParams:
    return made_up.shipped_assumptions()


def bars(drawing: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(drawing)
    return [one for one in found.iter(f"{SVG}rect") if "bar" in one.attrib["class"]]


def test_the_tornado_reaches_from_the_likely_value_to_both_ends(assumptions: RoiParams) -> None:
    roi = made_up.of_bench("ltx", assumptions)
    drawing = tornado_svg(roi, "acme & sons")
    root = ElementTree.fromstring(drawing)
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts[0] == "acme & sons"
    (centre,) = [float(one.attrib["x1"]) for one in root.iter(f"{SVG}line")
                 if one.attrib["class"] == "likely"]  # fmt: skip
    drawn = bars(drawing)
    labels = [text for text in texts if text in {q.label for q in INPUTS.values()}]
    assert labels == [INPUTS[row.name].label for row in roi.sensitivities[: len(labels)]]
    assert len(drawn) == 2 * len(labels) > 10
    first = roi.sensitivities[0]
    low, high = drawn[:2]
    assert (low.attrib["class"], high.attrib["class"]) == ("bar teacher", "bar phone")
    assert float(low.attrib["x"]) + float(low.attrib["width"]) == pytest.approx(centre, abs=0.2)
    assert float(high.attrib["x"]) == pytest.approx(centre, abs=0.2)
    ratio = float(high.attrib["width"]) / float(low.attrib["width"])
    likely = roi.likely.value_usd
    expected = float((first.at_high_usd - likely) / (likely - first.at_low_usd))
    assert ratio == pytest.approx(expected, rel=0.01)
    for value in (first.at_low_usd, first.at_high_usd):
        assert short_usd(float(value)) in texts
    left_out = len(roi.sensitivities) - len(labels)
    assert any((text or "").startswith(f"{left_out} more") for text in texts)


def test_without_a_sensitive_input_there_is_no_tornado(assumptions: RoiParams) -> None:
    known = made_up.exactly(made_up.of_bench("ltx", assumptions))
    assert tornado(known) is None
    with pytest.raises(ValueError):
        tornado_svg(known, "acme")
