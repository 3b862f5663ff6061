"""How hot an Android phone was while it measured, by what `dumpsys` reported now and then.

`dumpsys thermalservice` is there from Android 10 on. Lines and enums are those of AOSP's
ThermalManagerService and of android.os.Temperature.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MARK = "== turbo-vaed looks"
"""Before each reading: `dumpsys thermalservice; dumpsys battery`."""
MODERATE = 2
"""Of Android's statuses: none, light, moderate, severe, critical, emergency, shutdown."""
_NO_DEGREES = {-1, 6, 7, 8}
"""Types of a "temperature" that are something else: unknown, and a battery's volts, amperes, %."""
_STATUS = re.compile(r"Thermal Status: (\d+)")
_NOW = re.compile(r"Current temperatures from HAL:\r?\n((?:[ \t]+\S.*\n?)*)")
_SENSOR = re.compile(r"Temperature\{mValue=([^,]+), mType=(-?\d+), mName=(.+), mStatus=(\d+)\}")
_LIMITS = re.compile(
    r"TemperatureThreshold\{mType=(-?\d+), mName=(.+), mHotThrottlingThresholds=\[([^]]*)\]"
)
_BATTERY = re.compile(r"^\s*temperature: (-?\d+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Of a phone, over all readings; None where it reports none. The names are a Measurement's."""

    temperature_celsius: float | None
    """At the end, of the hottest sensor; of the battery where there is no other."""
    coolest_celsius: float | None
    hottest_celsius: float | None
    throttled: bool | None


@dataclass(frozen=True, kw_only=True)
class _Reading:
    celsius: float | None
    throttled: bool | None


def read_heat(text: str) -> Heat:
    """Of all that follows a `MARK` each, in order."""
    readings = [_read(part) for part in text.split(MARK)[1:]]
    celsius = [r.celsius for r in readings if r.celsius is not None]
    throttled = [r.throttled for r in readings if r.throttled is not None]
    return Heat(
        temperature_celsius=celsius[-1] if celsius else None,
        coolest_celsius=min(celsius, default=None),
        hottest_celsius=max(celsius, default=None),
        throttled=any(throttled) if throttled else None,
    )


def _read(text: str) -> _Reading:
    """Throttled is a phone that reports it, or one with a sensor at what its maker calls
    moderate or more: some makers slow a phone down and leave the status at none."""
    now = _NOW.search(text)  # the cached ones, which come before, are old
    sensors = [
        (float(value), int(kind), name, int(status))
        for value, kind, name, status in _SENSOR.findall(now[1] if now else "")
        if int(kind) not in _NO_DEGREES and _is_number(value) and float(value) > 0  # 0: no sensor
    ]
    limits = {(int(kind), name): hot.split(",") for kind, name, hot in _LIMITS.findall(text)}
    status, battery = _STATUS.search(text), _BATTERY.search(text)
    hot = any(
        level >= MODERATE or value >= _moderate(limits.get((kind, name), []))
        for value, kind, name, level in sensors
    )
    celsius = max((value for value, *_ in sensors), default=None)
    if celsius is None and battery is not None:
        celsius = int(battery[1]) / 10
    reported = [] if status is None else [int(status[1]) > 0]
    throttled = any([hot, *reported]) if reported or sensors else None
    return _Reading(celsius=celsius, throttled=throttled)


def _moderate(limits: list[str]) -> float:
    """Celsius from which a sensor is moderately hot; infinite where it has no such limit."""
    text = limits[MODERATE].strip() if len(limits) > MODERATE else ""
    found = float(text) if _is_number(text) else 0.0
    return found if found > 0 else math.inf


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
