"""What this machine reports while a program runs on it; None where it reports nothing.

Linux: /proc and /sys. Elsewhere all of it is None.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_LEAST_SECONDS = 0.2
"""The system counts in hundredths of a second: a shorter time is not resolved."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Counters at one moment."""

    wall_seconds: float
    own_cpu_seconds: float
    all_cpu_seconds: float | None
    """Busy time of all processors, since the machine was started."""
    stolen_seconds: float | None
    """Time that a hypervisor gave to others."""
    energy_joules: float | None
    throttle_events: int | None
    temperature_celsius: float | None
    """Of the hottest zone."""


@dataclass(frozen=True, kw_only=True)
class Meanwhile:
    """What happened between two moments."""

    background_cpu_share: float | None
    """Of all processors' time: spent by other processes, or taken by a hypervisor."""
    energy_joules: float | None
    throttled: bool | None
    temperature_celsius: float | None
    """At the end."""
    coolest_celsius: float | None
    hottest_celsius: float | None
    """Of the readings at the beginning and the end: reading a sensor in between would add load."""


def state() -> State:
    """The counters now."""
    busy, stolen = _processors()
    own = resource.getrusage(resource.RUSAGE_SELF)
    return State(
        wall_seconds=time.monotonic(),
        own_cpu_seconds=own.ru_utime + own.ru_stime,
        all_cpu_seconds=busy,
        stolen_seconds=stolen,
        energy_joules=_microjoules(),
        throttle_events=_throttle_events(),
        temperature_celsius=_temperature(),
    )


def between(start: State, end: State) -> Meanwhile:
    """What happened since `start`."""
    others = None
    if start.all_cpu_seconds is not None and end.all_cpu_seconds is not None:
        busy = end.all_cpu_seconds - start.all_cpu_seconds
        busy += (end.stolen_seconds or 0.0) - (start.stolen_seconds or 0.0)
        own = end.own_cpu_seconds - start.own_cpu_seconds
        wall = end.wall_seconds - start.wall_seconds
        if wall >= _LEAST_SECONDS:
            others = min(1.0, max(0.0, busy - own) / (wall * (os.cpu_count() or 1)))
    energy = None
    if start.energy_joules is not None and end.energy_joules is not None:
        used = end.energy_joules - start.energy_joules
        energy = used if used > 0 else None  # the counter has run over
    throttled = None
    if start.throttle_events is not None and end.throttle_events is not None:
        throttled = end.throttle_events > start.throttle_events
    read = (start.temperature_celsius, end.temperature_celsius)
    celsius = [found for found in read if found is not None]
    return Meanwhile(
        background_cpu_share=others,
        energy_joules=energy,
        throttled=throttled,
        temperature_celsius=end.temperature_celsius,
        coolest_celsius=min(celsius, default=None),
        hottest_celsius=max(celsius, default=None),
    )


def _processors() -> tuple[float | None, float | None]:
    """Busy and stolen seconds of all processors."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in line.split()[1:9])
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND, steal / _TICKS_PER_SECOND


def _microjoules() -> float | None:
    try:
        return int(_RAPL.read_text()) / 1e6
    except (OSError, ValueError):  # no such meter, or for root alone
        return None


def _throttle_events() -> int | None:
    counters = Path("/sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
    found = [int(path.read_text()) for path in counters]
    return sum(found) if found else None


def _temperature() -> float | None:
    """The hottest zone, degrees Celsius."""
    found = []
    for path in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):  # a sensor that is asleep
            continue
    return max(found) if found else None
