"""Line and dot charts as inline SVG: coloured by the page's CSS, sharp in print, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 46
_MOST_POINTS = 600
"""A longer series is thinned: the chart is 480 units wide."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one name; `tone` is the CSS class that colours them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str
    line: bool = True
    dots: bool = False
    faint: bool = False
    """Drawn behind, and not counted where the axis ends."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows, with its unit, and how one value reads."""

    label: str
    unit: str = ""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most about `most` round numbers (1, 2, 2.5, 5 times a power of ten) in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks with one common number of decimals, as few as tell them apart."""
    slack = min((b - a for a, b in pairwise(values)), default=abs(values[0])) / 1000
    labels: list[str] = []
    for digits in range(10):
        labels = [f"{value:,.{digits}f}" for value in values]
        shown = [float(label.replace(",", "")) for label in labels]
        if all(abs(a - b) <= slack for a, b in zip(shown, values, strict=True)):
            break
    return labels


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over the last `window` values at each place."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        means.append(total / min(i + 1, window))
    return means


def chart(*, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """An SVG figure of the series; `description` is what a screen reader says.

    Values that are not finite are left out. Returns an empty string where nothing is left.
    """
    finite = [s for s in (_finite(s) for s in series) if s.x]
    if not finite:
        return Markup("")
    frame = _Frame.around(finite)
    parts = [_grid(frame, x, y)]
    for one in sorted(finite, key=lambda s: not s.faint):
        parts.append(_drawn(one, frame, x, y))
    name = escape(title)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{name}. {escape(description)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where a value lies in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, series: Sequence[Series]) -> _Frame:
        firm = [s for s in series if not s.faint] or list(series)
        xs = [v for s in series for v in s.x]
        ys = [v for s in firm for v in s.y]
        for one in series:
            if one.faint:  # all but its extremes
                ordered = sorted(one.y)
                ys += [ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]]
        y_pad = (max(ys) - min(ys)) * 0.06 or abs(ys[0]) * 0.02 or 1.0
        x_pad = (max(xs) - min(xs)) * 0.02 or abs(xs[0]) * 0.02 or 1.0
        return cls(
            x_low=min(xs) - x_pad,
            x_high=max(xs) + x_pad,
            y_low=min(ys) - y_pad,
            y_high=max(ys) + y_pad,
        )

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = min(1.0, max(0.0, (y - self.y_low) / (self.y_high - self.y_low)))
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )


def _finite(series: Series) -> Series:
    pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True)
             if math.isfinite(x) and math.isfinite(y)]  # fmt: skip
    step = math.ceil(len(pairs) / _MOST_POINTS) or 1
    kept = pairs[::step]
    if pairs and kept[-1] != pairs[-1]:
        kept.append(pairs[-1])
    return Series(
        name=series.name,
        x=[p[0] for p in kept],
        y=[p[1] for p in kept],
        tone=series.tone,
        line=series.line,
        dots=series.dots,
        faint=series.faint,
    )


def _grid(frame: _Frame, x: Axis, y: Axis) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    rows = ticks(frame.y_low, frame.y_high, 5)
    for value, label in zip(rows, tick_labels(rows), strict=True):
        at = frame.place(frame.x_low, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4}" text-anchor="end">{label}</text>')
    columns = ticks(frame.x_low, frame.x_high, 6)
    for value, label in zip(columns, tick_labels(columns), strict=True):
        at = frame.place(value, frame.y_low)[0]
        parts.append(f'<line class="tick" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 19}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="title" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(_titled(x))}</text>"
        f'<text class="title" transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(_titled(y))}</text>'
    )
    return "".join(parts)


def _titled(axis: Axis) -> str:
    return f"{axis.label} ({axis.unit})" if axis.unit else axis.label


def _drawn(series: Series, frame: _Frame, x: Axis, y: Axis) -> str:
    points = [frame.place(a, b) for a, b in zip(series.x, series.y, strict=True)]
    tone = f"{series.tone} faint" if series.faint else series.tone
    parts = []
    if series.line and len(points) > 1:
        path = " ".join(f"{a},{b}" for a, b in points)
        parts.append(f'<polyline class="line {tone}" points="{path}"/>')
    if series.dots or len(points) == 1:
        for (a, b), x_value, y_value in zip(points, series.x, series.y, strict=True):
            said = f"{series.name}: {y_value:.4g} {y.unit} at {x.label} {x_value:g} {x.unit}"
            parts.append(
                f'<circle class="dot {tone}" cx="{a}" cy="{b}" r="4">'
                f"<title>{escape(said.strip())}</title></circle>"
            )
    return "".join(parts)
