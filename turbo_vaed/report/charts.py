"""Charts as inline SVG: one scale, one axis and one set of marks, coloured by charts.css.

A drawer lays its values on scales, asks for the axes and adds its marks; line and bar charts are
whole ones for any data. A drawing needs no script and is sharp in print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import escape

from turbo_vaed.report.templating import environment, source

CHARACTER = 7.2
"""Units that a character takes at most."""
_MOST_POINTS = 600
"""A longer series is thinned: a chart is 480 units wide."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 46


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished chart. Jinja prints it as its SVG."""

    width: int
    height: int
    body: str
    label: str
    """What a screen reader says."""
    kind: str = ""
    """Its CSS class, besides `chart`."""

    def __html__(self) -> str:
        kind = f"chart {self.kind}".strip()
        return (
            f'<svg class="{kind}" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.label)}">{self.body}</svg>'
        )

    __str__ = __html__


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows, with its unit, and how its ticks read."""

    label: str
    unit: str = ""
    format: Callable[[float], str] | None = None
    """Of one tick; by default all have as few decimals as keep them apart."""

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from `low` to `high`, laid from `start` to `end` in the units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, *, margin: float = 0.0
    ) -> Scale:
        """Room for all values, and a share of their range at both ends."""
        low, high = min(values), max(values)
        room = (high - low) * margin or (0.0 if high > low else abs(low) * 0.02 or 1.0)
        return cls(low=low - room, high=high + room, start=start, end=end)

    def __call__(self, value: float) -> float:
        """Where a value lies; one outside the range lies at its end."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(self.start + share * (self.end - self.start), 1)


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
    """The ticks with one common number of decimals, as few as keep them apart."""
    slack = min((b - a for a, b in pairwise(values)), default=abs(values[0])) / 1000
    labels: list[str] = []
    for digits in range(10):
        labels = [f"{value:,.{digits}f}" for value in values]
        printed = [float(label.replace(",", "")) for label in labels]
        if all(abs(a - b) <= slack for a, b in zip(printed, values, strict=True)):
            break
    return labels


def _labelled(scale: Scale, axis: Axis, most: int) -> list[tuple[float, str]]:
    """Ticks with their labels."""
    values = ticks(scale.low, scale.high, most)
    labels = [axis.format(v) for v in values] if axis.format else tick_labels(values)
    return list(zip(values, labels, strict=True))


def x_axis(scale: Scale, axis: Axis, bottom: float, *, grid_top: float | None = None) -> str:
    """The axis at the bottom; with `grid_top`, lines through the drawing from there on.

    Of labels that would touch each other there are fewer; one at the end stays within the drawing.
    """
    rows: list[tuple[float, str]] = []
    for most in (6, 4, 3, 2):
        rows = _labelled(scale, axis, most)
        room = min((scale(b) - scale(a) for (a, _), (b, _) in pairwise(rows)), default=math.inf)
        if max(len(label) for _, label in rows) * CHARACTER <= room:
            break
    parts, last = [], scale.end + _RIGHT
    for value, label in rows:
        at = scale(value)
        if grid_top is not None:
            parts.append(line("zero" if value == 0 else "grid", at, grid_top, at, bottom))
        parts += [
            line("tick", at, bottom, at, bottom + 5),
            text(min(at, last - len(label) * CHARACTER / 2), bottom + 19, label, anchor="middle"),
        ]
    middle = (scale.start + scale.end) / 2
    return "".join([
        *parts,
        line("axis", scale.start, bottom, scale.end, bottom),
        text(middle, bottom + 40, axis.title, anchor="middle", kind="title"),
    ])  # fmt: skip


def y_axis(scale: Scale, axis: Axis, left: float, right: float) -> str:
    """The axis at the left, with a line through the drawing at each tick."""
    parts = []
    for value, label in _labelled(scale, axis, 5):
        at = scale(value)
        parts.append(line("grid", left, at, right, at))
        parts.append(text(left - 8, at + 4, label, anchor="end"))
    middle = (scale.start + scale.end) / 2
    return "".join(parts) + (
        f'<text class="title" transform="translate(14 {middle:g}) rotate(-90)" '
        f'text-anchor="middle">{escape(axis.title)}</text>'
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> str:
    """Escaped text; `kind` is its CSS class."""
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line."""
    return f'<line class="{kind}" x1="{x1:g}" x2="{x2:g}" y1="{y1:g}" y2="{y2:g}"/>'


def polyline(tone: str, points: Iterable[tuple[float, float]]) -> str:
    """A line through the points."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline class="line {tone}" points="{path}"/>'


def dot(tone: str, x: float, y: float, title: str, *, radius: float = 4) -> str:
    """A point with the tooltip `title`."""
    return (
        f'<circle class="dot {tone}" cx="{x:g}" cy="{y:g}" r="{radius:g}">'
        f"<title>{escape(title)}</title></circle>"
    )


def bar(tone: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    """A horizontal bar, with the tooltip `title`."""
    tooltip = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect class="bar {tone}" x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}">'
        f"{tooltip}</rect>"
    )


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one name; `tone` is the CSS class that colours them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str
    line: bool = True
    dots: bool = False
    radius: float = 4
    """Of its dots."""
    faint: bool = False
    """Drawn behind; its extremes do not stretch the axis."""


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over the last `window` values at each place."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value
        if i >= window:
            total -= values[i - window]
        means.append(total / min(i + 1, window))
    return means


def line_chart(
    *, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series]
) -> Drawing | None:
    """Lines and dots; values that are not finite are left out. None where nothing is left."""
    finite = [s for s in (_finite(s) for s in series) if s.x]
    if not finite:
        return None
    width, height = 480, 300
    right, bottom = width - _RIGHT, height - _BOTTOM
    firm = [v for s in finite for v in (_without_extremes(s.y) if s.faint else s.y)]
    across = Scale.around([v for s in finite for v in s.x], _LEFT, right, margin=0.02)
    up = Scale.around(firm, bottom, _TOP, margin=0.06)
    parts = [y_axis(up, y, _LEFT, right), x_axis(across, x, bottom)]
    parts += [_drawn(one, across, up, x, y) for one in sorted(finite, key=lambda s: not s.faint)]
    return Drawing(
        width=width, height=height, body="".join(parts), label=f"{title}. {description}"
    )  # fmt: skip


def _without_extremes(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]]


def _finite(series: Series) -> Series:
    pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True)
             if math.isfinite(x) and math.isfinite(y)]  # fmt: skip
    step = math.ceil(len(pairs) / _MOST_POINTS) or 1
    thinned = pairs[::step]
    if pairs and thinned[-1] != pairs[-1]:
        thinned.append(pairs[-1])
    return replace(series, x=[p[0] for p in thinned], y=[p[1] for p in thinned])


def _drawn(series: Series, across: Scale, up: Scale, x: Axis, y: Axis) -> str:
    tone = f"{series.tone} faint" if series.faint else series.tone
    parts = []
    if series.line and len(series.x) > 1:
        parts.append(polyline(tone, zip(map(across, series.x), map(up, series.y), strict=True)))
    if series.dots or len(series.x) == 1:
        for a, b in zip(series.x, series.y, strict=True):
            title = f"{series.name}: {b:.4g} {y.unit} at {x.label} {a:g} {x.unit}".strip()
            parts.append(dot(tone, across(a), up(b), title, radius=series.radius))
    return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar; a negative value has no length."""

    label: str
    value: float
    bad: float = 0.0
    """The part of the value that is drawn at the bar's end in the colour of what is bad."""
    text: str
    """The value, for people."""


_ROW, _THICK = 26, 14


def bar_chart(
    *, title: str, description: str, bars: Sequence[Bar], label_width: int = 132
) -> Drawing | None:
    """A row per bar: its label, the bar, its value. None without bars."""
    if not bars:
        return None
    width, height = 480, _ROW * len(bars) + 4
    most = max(one.value for one in bars)
    room = width - label_width - 10 - CHARACTER * max(len(one.text) for one in bars)
    rows = "".join(
        # Not by room / most, which no float holds where the most is next to nothing.
        _bar_row(one, i * _ROW + 2, label_width, room * max(0.0, one.value) / most)
        if most > 0
        else _bar_row(one, i * _ROW + 2, label_width, 0.0)
        for i, one in enumerate(bars)
    )
    return Drawing(
        width=width,
        height=height,
        body=line("axis", label_width, 0, label_width, height) + rows,
        label=f"{title}. {description}",
        kind="bar-chart",
    )


def _bar_row(one: Bar, top: float, left: float, length: float) -> str:
    bad = length * min(1.0, max(0.0, one.bad) / one.value) if one.value > 0 else 0.0
    most = int((left - 8) / 6.8)
    label = one.label if len(one.label) <= most else f"{one.label[: most - 1]}…"
    y, text_y = top + (_ROW - _THICK) / 2, top + _ROW / 2 + 4.5
    return (
        f"<g><title>{escape(one.label)}: {escape(one.text)}</title>"
        + text(left - 8, text_y, label, anchor="end")
        + bar("phone", left, y, length - bad, _THICK)
        + (bar("bad", left + length - bad, y, bad, _THICK) if bad else "")
        + text(round(left + length + 6, 1), text_y, one.text, kind="title")
        + "</g>"
    )


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """A key in a row from (x, y) on, of (tone, name) pairs."""
    parts = []
    for tone, name in entries:
        parts.append(f'<line class="key {tone}" x1="{x:g}" x2="{x + 16:g}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(text(x + 22, y + 4, name))
        x += 22 + 6.2 * len(name) + 16
    return "".join(parts)


def standalone(parts: Sequence[tuple[str, str, Drawing]]) -> str:
    """An SVG file of charts below each other, each with its heading and what stands below that.

    Its colours are those of the page's light scheme, written out: a viewer knows no variables.
    """
    width, y, body = max(drawing.width for *_, drawing in parts) + 20, 0, []
    for heading, above, drawing in parts:
        body.append(text(10, y + 26, heading, kind="heading"))
        body.append(f'<g transform="translate(10 {y + 46})">{above}</g>')
        y += 64 if above else 40
        body.append(f'<g transform="translate(10 {y})">{drawing.__html__()}</g>')
        y += drawing.height + 10
    label = escape("; ".join(drawing.label for *_, drawing in parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" '
        f'height="{y}" role="img" aria-label="{label}"><style>{_light_style()}</style>'
        f'<rect class="paper" width="{width}" height="{y}"/>{"".join(body)}</svg>\n'
    )


def _light_style() -> str:
    found = environment()
    page, style = source(found, "style.css"), source(found, "charts.css")
    colours = dict(re.findall(r"--([\w-]+):\s*(#\w+)", page.partition("}")[0]))
    return re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], style)
