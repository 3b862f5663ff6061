"""The tornado of a return on investment: what each input's range does to the value, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from turbo_vaed.report.charts import ticks
from turbo_vaed.report.simulation import STYLE
from turbo_vaed.report.words import amount
from turbo_vaed.roi.inputs import INPUTS
from turbo_vaed.roi.roi import Roi, Sensitivity

_WIDTH, _LABELS, _BESIDE, _ROW, _BAR, _TOP, _BOTTOM = 820, 250, 62, 38, 20, 50, 46
_LEAST = 200
"""A swing that is so many times smaller than the largest would be no bar to see."""
_STYLE = """
.bar.teacher { fill: #bc4c00; } .bar.phone { fill: #0969da; }
.likely { stroke: #1f2328; stroke-width: 1.6; } .zero { stroke: #59636e; stroke-dasharray: 3 3; }
"""
"""LOW is drawn in the teacher's colour of the page, HIGH in the phone's."""


def tornado(roi: Roi) -> Markup:
    """A row per input that moves the value over the horizon to be seen, the largest swing first.

    The centre line is the value where everything is likely; a bar reaches to the value at the
    input's low end and at its high end. Empty where no input moves it.
    """
    rows = _shown(roi)
    if not rows:
        return Markup("")
    height = _TOP + _ROW * len(rows) + _BOTTOM
    frame = _Frame.around(float(roi.likely.value_usd), rows)
    said = "; ".join(
        f"{INPUTS[row.name].label} {short_usd(float(row.at_low_usd))} to "
        f"{short_usd(float(row.at_high_usd))}"
        for row in rows[:3]
    )
    parts = [_axis(frame, height, len(roi.sensitivities) - len(rows)), _key(roi)]
    parts += [_row(roi, row, frame, _TOP + _ROW * i) for i, row in enumerate(rows)]
    parts.append(_line("likely", frame.place(frame.likely), _TOP - 6, height - _BOTTOM))
    return Markup(
        f'<svg class="chart tornado" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"What the value hinges on. {said}")}">{"".join(parts)}</svg>'
    )


def tornado_svg(roi: Roi, title: str) -> str:
    """A standalone SVG file of the tornado under a title.

    Raises:
        ValueError: no input moves the value.
    """
    drawing = tornado(roi)
    if not drawing:
        raise ValueError("no input has a range that moves the value; there is no tornado to draw")
    height = _TOP + _ROW * len(_shown(roi)) + _BOTTOM
    inner = drawing[drawing.index(">") + 1 : drawing.rindex("</svg>")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -34 {_WIDTH} {height + 34}" '
        f'width="{_WIDTH}" height="{height + 34}">'
        f'<style>{STYLE}{_STYLE}</style><text class="title" x="10" y="-12">{escape(title)}</text>'
        f"{inner}</svg>\n"
    )


def spread_of(roi: Roi, name: str) -> str:
    """An input's range with its unit: `10,000 to 1,000,000 per month`."""
    one, unit = roi.input(name), INPUTS[name].unit
    ends = dict.fromkeys((amount(one.low), amount(one.high)))
    return f"{' to '.join(ends)} {unit}"


def short_usd(value: float) -> str:
    """A place on an axis: `$950`, `-$12k`, `$3.4M`."""
    size, unit = abs(value), ""
    for power, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= 0.9995 * power:
            size, unit = size / power, name
            break
    digits = f"{size:.3g}" if size < 999.5 else f"{size:.0f}"
    return f"{'-' if value < 0 else ''}${digits}{unit}"


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where a value lies in the drawing."""

    low: float
    high: float
    likely: float

    @classmethod
    def around(cls, likely: float, rows: Sequence[Sensitivity]) -> _Frame:
        values = [float(v) for row in rows for v in (row.at_low_usd, row.at_high_usd)]
        return cls(low=min(values), high=max(values), likely=likely)

    def place(self, value: float) -> float:
        left, right = _LABELS + _BESIDE, _WIDTH - _BESIDE
        return round(left + (value - self.low) / (self.high - self.low) * (right - left), 1)


def _shown(roi: Roi) -> list[Sensitivity]:
    least = roi.sensitivities[0].swing_usd / _LEAST
    return [row for row in roi.sensitivities if row.swing_usd and row.swing_usd >= least]


def _line(tone: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{tone}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", tone: str = "") -> str:
    kind = f' class="{tone}"' if tone else ""
    return f'<text{kind} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _axis(frame: _Frame, height: int, left_out: int) -> str:
    bottom = height - _BOTTOM
    parts = []
    for value in ticks(frame.low, frame.high, 6):
        at = frame.place(value)
        parts.append(_line("zero" if value == 0 else "grid", at, _TOP - 6, bottom))
        parts.append(_text(at, bottom + 18, short_usd(value), "middle"))
    middle = (_LABELS + _WIDTH) / 2
    parts.append(_text(middle, height - 6, "value over the horizon (USD)", "middle", "title"))
    if left_out:
        parts.append(_text(10, height - 6, f"{left_out} more inputs move it little or not"))
    return "".join(parts)


def _key(roi: Roi) -> str:
    likely = f"centre line: all likely, {short_usd(float(roi.likely.value_usd))}"
    left = _LABELS + _BESIDE
    return (
        f'<rect class="bar teacher" x="{left}" y="10" width="14" height="10" rx="2"/>'
        + _text(left + 20, 19, "input at its low")
        + f'<rect class="bar phone" x="{left + 140}" y="10" width="14" height="10" rx="2"/>'
        + _text(left + 160, 19, "input at its high")
        + _text(_WIDTH - 10, 19, likely, "end", "title")
    )


def _row(roi: Roi, row: Sensitivity, frame: _Frame, top: float) -> str:
    one, quantity = roi.input(row.name), INPUTS[row.name]
    middle, parts = top + _ROW / 2, []
    parts.append(_text(_LABELS, middle - 2, quantity.label, "end", "title"))
    parts.append(_text(_LABELS, middle + 12, spread_of(roi, row.name), "end"))
    ends = [("teacher", float(row.at_low_usd)), ("phone", float(row.at_high_usd))]
    centre = frame.place(frame.likely)
    for (tone, value), end in zip(ends, (one.low, one.high), strict=True):
        at = frame.place(value)
        said = f"{quantity.label} at {amount(end)}: {short_usd(value)}"
        parts.append(
            f'<rect class="bar {tone}" x="{min(at, centre)}" y="{middle - _BAR / 2}" '
            f'width="{abs(at - centre):.1f}" height="{_BAR}"><title>{escape(said)}</title></rect>'
        )
    for (_, value), anchor in zip(sorted(ends, key=lambda e: e[1]), ("end", "start"), strict=True):
        beside = -6 if anchor == "end" else 6
        parts.append(_text(frame.place(value) + beside, middle + 4, short_usd(value), anchor))
    return "".join(parts)
