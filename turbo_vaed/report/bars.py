"""Horizontal bars as inline SVG: coloured by the page's CSS, sharp in print, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _ROW, _THICK = 480, 26, 14
_LABELS = 132
"""Room left of the bars."""
_PER_LETTER = 7.2
"""Room that a letter of a value takes, at most."""
_MOST_LETTERS = 18
"""Of a label; all of it is in the bar's title."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar. Its length is what is drawn of `value`; a negative one has none."""

    label: str
    value: float
    part: float = 0.0
    """Of the value, drawn at the bar's end in the tone of what is bad."""
    said: str
    """The value, for people."""


def bars(*, title: str, description: str, rows: Sequence[Bar]) -> Markup:
    """An SVG figure of the rows; `description` is what a screen reader says. Empty without rows."""
    if not rows:
        return Markup("")
    most = max((row.value for row in rows), default=0.0)
    height = _ROW * len(rows) + 4
    room = _WIDTH - _LABELS - 10 - _PER_LETTER * max(len(row.said) for row in rows)
    drawn = "".join(
        # Not by room / most, which no float holds where the most is next to nothing.
        _drawn(row, place * _ROW + 2, room * max(0.0, row.value) / most if most > 0 else 0.0)
        for place, row in enumerate(rows)
    )
    return Markup(
        f'<svg class="chart bar-chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}. {escape(description)}">'
        f'<line class="axis" x1="{_LABELS}" x2="{_LABELS}" y1="0" y2="{height}"/>{drawn}</svg>'
    )


def _drawn(row: Bar, top: float, length: float) -> str:
    bad = length * min(1.0, max(0.0, row.part) / row.value) if row.value > 0 else 0.0
    short = row.label if len(row.label) <= _MOST_LETTERS else f"{row.label[: _MOST_LETTERS - 1]}…"
    y, text_y = top + (_ROW - _THICK) / 2, top + _ROW / 2 + 4.5
    return (
        f"<g><title>{escape(row.label)}: {escape(row.said)}</title>"
        f'<text x="{_LABELS - 8}" y="{text_y:g}" text-anchor="end">{escape(short)}</text>'
        f'<rect class="fill-phone" x="{_LABELS}" y="{y:g}" width="{length - bad:.2f}" '
        f'height="{_THICK}"/>'
        f'<rect class="fill-bad" x="{_LABELS + length - bad:.2f}" y="{y:g}" width="{bad:.2f}" '
        f'height="{_THICK}"/>'
        f'<text class="title" x="{_LABELS + length + 6:.2f}" y="{text_y:g}">{escape(row.said)}'
        "</text></g>"
    )
