"""The packages of a run: quality against time, what passes and what ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from turbo_vaed.report import words
from turbo_vaed.report.charts import tick_labels, ticks
from turbo_vaed.report.tables import SIGNS, TONES

_WIDTH, _HEIGHT = 760, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 40, 24, 46
_MARKS = {"passes": "circle", "inconclusive": "diamond", "fails": "cross"}
Point = Mapping[str, Any]


def section(
    choice: Mapping[str, Any] | None, measurement: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The picture, the table and the sentence of `gate/choice.json`.

    Args:
        measurement: of the chosen package: it tells whose time the candidates' is.
    """
    if choice is None:
        return None
    on_device = (measurement or {}).get("on_device")
    timed = f"one run at {on_device['shape']}" if on_device else "one clip"
    return {
        "reason": choice["reason"],
        "timed": timed,
        "svg": picture(choice, timed),
        "rows": [_row(one, choice["chosen"]) for one in choice["candidates"]],
        "elsewhere": list(choice["not_measured"].items()),
    }


def front(candidates: Sequence[Point]) -> list[Point]:
    """Those of which none other is both faster and better, the fastest first."""
    kept: list[Point] = []
    for one in sorted(candidates, key=lambda c: (c["median_latency_seconds"], -c["psnr_db"])):
        if not kept or one["psnr_db"] > kept[-1]["psnr_db"]:
            kept.append(one)
    return kept


def picture(choice: Mapping[str, Any], timed: str = "one clip") -> Markup:
    """PSNR over the median latency of every package that ran; empty of fewer than two.

    Args:
        timed: what the latency is of.
    """
    points = [
        one
        for one in choice["candidates"]
        if one["psnr_db"] is not None and one["median_latency_seconds"] is not None
    ]
    if len(points) < 2:
        return Markup("")
    frame = _Frame.around(points)
    steps = front(points)
    said = "; ".join(
        f"{one['name']} {_ms(one):.1f} ms, {one['psnr_db']:.2f} dB, {one['result']}"
        for one in points
    )
    parts = [_axes(frame, timed), _staircase(frame, steps)]
    parts += [_mark(frame, one, is_chosen=one["name"] == choice["chosen"]) for one in points]
    return Markup(
        f'<svg class="chart pareto" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"PSNR over latency by package. {said}")}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where values lie on the picture."""

    x: tuple[float, float]
    """Milliseconds, from 0."""
    y: tuple[float, float]
    """dB."""

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Frame:
        low, high = min(p["psnr_db"] for p in points), max(p["psnr_db"] for p in points)
        room = max(0.1, (high - low) * 0.25)  # above it for a name, too
        return cls(x=(0, max(map(_ms, points)) * 1.08), y=(low - room, high + 1.5 * room))

    def at(self, ms: float, db: float) -> tuple[float, float]:
        """The place of a value, in the units of the picture."""
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (ms - self.x[0]) / (self.x[1] - self.x[0])
        up = (db - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + width * across, _HEIGHT - _BOTTOM - height * up


def _axes(frame: _Frame, timed: str) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    values = ticks(*frame.y)
    for value, label in zip(values, tick_labels(values), strict=True):
        _, y = frame.at(0, value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    values = ticks(*frame.x)
    for value, label in zip(values, tick_labels(values), strict=True):
        x, _ = frame.at(value, frame.y[0])
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        f'<text class="title" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"median of {escape(timed)} (ms), to the left is faster</text>"
        f'<text class="title" transform="translate(14 {middle}) rotate(-90)" '
        'text-anchor="middle">PSNR (dB)</text>'
    )
    return "".join(parts)


def _staircase(frame: _Frame, steps: Sequence[Point]) -> str:
    """The best PSNR that can be had in each time."""
    places = [frame.at(_ms(one), one["psnr_db"]) for one in steps]
    path = [f"{places[0][0]:.1f},{_HEIGHT - _BOTTOM}"]
    for i, (x, y) in enumerate(places):
        if i:
            path.append(f"{x:.1f},{places[i - 1][1]:.1f}")
        path.append(f"{x:.1f},{y:.1f}")
    path.append(f"{_WIDTH - _RIGHT},{places[-1][1]:.1f}")
    return f'<polyline class="line" points="{" ".join(path)}"/>'


def _mark(frame: _Frame, one: Point, *, is_chosen: bool) -> str:
    """A sign that tells the result without colour, and the package's name."""
    x, y = frame.at(_ms(one), one["psnr_db"])
    tone = TONES[one["result"]]
    shapes = {
        "circle": f'<circle class="sign {tone}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        "diamond": f'<path class="sign {tone}" d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"/>',
        "cross": f'<path class="cut {tone}" d="M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12"/>',
    }
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="11"/>' if is_chosen else ""
    size = words.size(one["size_bytes"])
    label = f"{one['name']}, {size}{', ships' if is_chosen and tone == 'good' else ''}"
    across = (x - _LEFT) / (_WIDTH - _LEFT - _RIGHT)
    anchor = "start" if across < 0.25 else "end" if across > 0.75 else "middle"
    return (
        f"{ring}{shapes[_MARKS[one['result']]]}"
        f'<text x="{x:.1f}" y="{y - 17:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _row(one: Point, chosen: str) -> dict[str, Any]:
    ran = one["median_latency_seconds"] is not None
    latency, between = "did not run", ""
    if ran:
        median, interval = one["median_latency_seconds"], one["latency_interval_seconds"]
        latency, between = words.latency(float(median), *map(float, interval))
    return {
        "name": one["name"],
        "is_chosen": one["name"] == chosen,
        "result": one["result"],
        "tone": TONES[one["result"]],
        "sign": SIGNS[one["result"]],
        "psnr": words.decibel(one["psnr_db"]),
        "parity": words.decibel(one["parity_psnr_db"]),
        "latency": latency,
        "between": between,
        "size": words.size(one["size_bytes"]),
        "not_passed": ", ".join(words.check_label(name) for name in one["not_passed"]),
        "unreliable_reason": one.get("unreliable_reason") or "",
    }


def _ms(one: Point) -> float:
    return float(one["median_latency_seconds"]) * 1000
