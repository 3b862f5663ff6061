"""The tornado of a return on investment: what each input's range does to the value."""

from __future__ import annotations

from turbo_vaed.report.charts import (
    Axis,
    Drawing,
    Scale,
    bar,
    legend,
    line,
    standalone,
    text,
    x_axis,
)
from turbo_vaed.report.formatting import amount, short_usd
from turbo_vaed.roi.inputs import INPUTS
from turbo_vaed.roi.roi import Roi, Sensitivity

_WIDTH, _LABELS, _VALUES, _ROW, _BAR, _TOP, _BOTTOM = 820, 250, 62, 38, 20, 44, 46
_LEAST = 200
"""A swing that is so many times smaller than the largest would be no bar to see."""
_LOW, _HIGH = "teacher", "phone"
"""Tones of an input's low and high end."""


def tornado(roi: Roi) -> Drawing | None:
    """A row per input that visibly moves the value over the horizon, the largest swing first.

    The centre line is the value where everything is likely; a bar reaches to the value at the
    input's low end and at its high end. None where no input moves it.
    """
    largest = roi.sensitivities[0].swing_usd
    rows = [row for row in roi.sensitivities if row.swing_usd and row.swing_usd >= largest / _LEAST]
    if not rows:
        return None
    bottom = _TOP + _ROW * len(rows)
    ends = [float(end) for row in rows for end in (row.at_low_usd, row.at_high_usd)]
    scale = Scale.around(ends, _LABELS + _VALUES, _WIDTH - _VALUES)
    likely = float(roi.likely.value_usd)
    left_out = len(roi.sensitivities) - len(rows)
    parts = [
        x_axis(scale, Axis(label="value over the horizon", unit="USD", format=short_usd), bottom,
               grid_top=_TOP - 6),
        legend(scale.start, 15, [(_LOW, "input at its low"), (_HIGH, "input at its high")]),
        text(_WIDTH - 10, 19, f"centre line: all inputs likely, {short_usd(likely)}", anchor="end",
             kind="title"),
        *(_row(roi, row, scale, _TOP + _ROW * i) for i, row in enumerate(rows)),
        line("likely", scale(likely), _TOP - 6, scale(likely), bottom),
    ]  # fmt: skip
    if left_out:
        more = f"{left_out} more inputs hardly matter" if left_out > 1 else "1 more hardly matters"
        parts.append(text(10, bottom + 40, more))
    listed = "; ".join(
        f"{INPUTS[row.name].label} {short_usd(float(row.at_low_usd))} to "
        f"{short_usd(float(row.at_high_usd))}"
        for row in rows[:3]
    )
    return Drawing(
        width=_WIDTH, height=bottom + _BOTTOM, body="".join(parts), kind="tornado",
        label=f"What the value depends on. {listed}",
    )  # fmt: skip


def tornado_svg(roi: Roi, title: str) -> str:
    """A standalone SVG file of the tornado under a title.

    Raises:
        ValueError: no input moves the value.
    """
    drawing = tornado(roi)
    if drawing is None:
        raise ValueError("no input has a range that moves the value; there is no tornado to draw")
    return standalone([(title, "", drawing)])


def range_with_unit(roi: Roi, name: str) -> str:
    """An input's range: `10,000 to 1,000,000 per month`."""
    one, unit = roi.input(name), INPUTS[name].unit
    ends = dict.fromkeys((amount(one.low), amount(one.high)))
    return f"{' to '.join(ends)} {unit}"


def _row(roi: Roi, row: Sensitivity, scale: Scale, top: float) -> str:
    one, label = roi.input(row.name), INPUTS[row.name].label
    middle, centre = top + _ROW / 2, scale(float(roi.likely.value_usd))
    parts = [
        text(_LABELS, middle - 2, label, anchor="end", kind="title"),
        text(_LABELS, middle + 12, range_with_unit(roi, row.name), anchor="end"),
    ]
    low, high = float(row.at_low_usd), float(row.at_high_usd)
    for tone, value, end in ((_LOW, low, one.low), (_HIGH, high, one.high)):
        x, width = min(scale(value), centre), abs(scale(value) - centre)
        title = f"{label} at {amount(end)}: {short_usd(value)}"
        parts.append(bar(tone, x, middle - _BAR / 2, width, _BAR, title))
    for value, anchor, off in ((min(low, high), "end", -6), (max(low, high), "start", 6)):
        parts.append(text(scale(value) + off, middle + 4, short_usd(value), anchor=anchor))
    return "".join(parts)
