"""The packages that the gate judged: quality over latency, which pass, and which one ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turbo_vaed.report import formatting
from turbo_vaed.report.charts import CHARACTER, Axis, Drawing, Scale, polyline, text, x_axis, y_axis
from turbo_vaed.report.wording import SIGNS, TONES, check_label, timed_run

_WIDTH, _HEIGHT = 760, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 720, 24, 284
_LINE = 15
"""Units that a label is high."""
Point = Mapping[str, Any]


def section(
    choice: Mapping[str, Any] | None, measurement: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The picture and the table of `gate/choice.json`.

    Args:
        measurement: of the chosen package; its shape is that of all candidates' times.
    """
    if choice is None:
        return None
    timed = timed_run(measurement)
    return {
        "reason": choice["reason"],
        "timed": timed,
        "picture": picture(choice, timed),
        "rows": [_row(one, choice["chosen"]) for one in choice["candidates"]],
        "elsewhere": list(choice["not_measured"].items()),
    }


def front(candidates: Sequence[Point]) -> list[Point]:
    """The Pareto front: no other is as fast and better, or as good and faster. Fastest first."""
    best: list[Point] = []
    for one in sorted(candidates, key=lambda c: (c["median_latency_seconds"], -c["psnr_db"])):
        if not best or one["psnr_db"] > best[-1]["psnr_db"]:
            best.append(one)
    return best


def picture(choice: Mapping[str, Any], timed: str = "one clip") -> Drawing | None:
    """PSNR over the median latency of every package that ran; None of fewer than two.

    Args:
        timed: what was timed.
    """
    points = [
        one
        for one in choice["candidates"]
        if one["psnr_db"] is not None and one["median_latency_seconds"] is not None
    ]
    if len(points) < 2:
        return None
    low, high = min(p["psnr_db"] for p in points), max(p["psnr_db"] for p in points)
    room = max(0.1, (high - low) * 0.25)  # above the best one for its label, too
    across = Scale(low=0, high=max(map(_ms, points)) * 1.08, start=_LEFT, end=_RIGHT)
    up = Scale(low=low - room, high=high + 1.5 * room, start=_BOTTOM, end=_TOP)
    at = {id(one): (across(_ms(one)), up(one["psnr_db"])) for one in points}
    parts = [
        y_axis(up, Axis(label="PSNR", unit="dB"), _LEFT, _RIGHT),
        x_axis(across, Axis(label=f"median latency of {timed}, less is better", unit="ms"),
               _BOTTOM),
        _staircase([at[id(one)] for one in front(points)]),
    ]  # fmt: skip
    parts += [_mark(one, *at[id(one)], is_chosen=one["name"] == choice["chosen"]) for one in points]
    parts += _labels([(_label(one, choice["chosen"]), *at[id(one)]) for one in points])
    listed = "; ".join(
        f"{one['name']} {_ms(one):.1f} ms, {one['psnr_db']:.2f} dB, {one['result']}"
        for one in points
    )
    return Drawing(
        width=_WIDTH, height=_HEIGHT, body="".join(parts), kind="packages",
        label=f"PSNR over latency by package. {listed}",
    )  # fmt: skip


def _staircase(places: Sequence[tuple[float, float]]) -> str:
    """The best PSNR that can be had within each latency."""
    path = [(places[0][0], float(_BOTTOM))]
    for i, (x, y) in enumerate(places):
        path += [(x, places[i - 1][1]), (x, y)] if i else [(x, y)]
    return polyline("front", [*path, (_RIGHT, places[-1][1])])


def _mark(one: Point, x: float, y: float, *, is_chosen: bool) -> str:
    """Results differ in shape, not by colour alone."""
    tone = TONES[one["result"]]
    shapes = {
        "good": f'<circle class="sign good" cx="{x:g}" cy="{y:g}" r="6"/>',
        "warn": f'<path class="sign warn" d="M{x:g} {y - 8:g}l8 8l-8 8l-8 -8z"/>',
        "bad": f'<path class="cut" d="M{x - 6:g} {y - 6:g}l12 12m0 -12l-12 12"/>',
    }
    ring = f'<circle class="ring" cx="{x:g}" cy="{y:g}" r="11"/>' if is_chosen else ""
    return ring + shapes[tone]


def _label(one: Point, chosen: str) -> str:
    ships = one["name"] == chosen and one["result"] == "passes"
    return f"{one['name']}, {formatting.size(one['size_bytes'])}{', ships' if ships else ''}"


def _labels(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Each above or below its mark, where neither another label nor a mark is in its way."""
    taken = [(x - 11, y - 11, x + 11, y + 11) for _, x, y in points]
    parts = []
    for label, x, y in points:
        width = CHARACTER * len(label) * 0.9
        left = min(max(x - width / 2, _LEFT + 4), _RIGHT - width)
        boxes = [(left, y + off - _LINE, left + width, y + off) for off in (-14, 28, -30, 44, -46)]
        box = next((b for b in boxes if not any(map(_overlaps, taken, [b] * len(taken)))), boxes[0])
        taken.append(box)
        parts.append(
            text(round(left + width / 2, 1), box[3] - 3, label, anchor="middle", kind="label")
        )
    return parts


def _overlaps(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _row(one: Point, chosen: str) -> dict[str, Any]:
    ran = one["median_latency_seconds"] is not None
    latency, between = "did not run", ""
    if ran:
        median, interval = one["median_latency_seconds"], one["latency_interval_seconds"]
        latency, between = formatting.latency(float(median), *map(float, interval))
    return {
        "name": one["name"],
        "is_chosen": one["name"] == chosen,
        "result": one["result"],
        "tone": TONES[one["result"]],
        "sign": SIGNS[one["result"]],
        "psnr": formatting.decibel(one["psnr_db"]),
        "parity": formatting.decibel(one["parity_psnr_db"]),
        "latency": latency,
        "between": between,
        "size": formatting.size(one["size_bytes"]),
        "not_passed": ", ".join(check_label(name) for name in one["not_passed"]),
        "unreliable_reason": one.get("unreliable_reason") or "",
    }


def _ms(one: Point) -> float:
    return float(one["median_latency_seconds"]) * 1000
