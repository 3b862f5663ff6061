"""What a device reports for a package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from turbo_vaed.devices.timing import MedianInterval, interval_of_median, together

DECODED_NAME = "decoded.npy"
"""What the device put out, in `out_folder`: float32 (N, 3, T, H, W), raw, about [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Speed and memory of one package on one device."""

    device: str
    machine: str
    """Processor and system, for a person."""
    runtime: str
    """What ran the program, with its version."""
    package_sha256: str
    threads: int
    warmup: int
    """Runs before the first sample, besides the cold one, until they were steady; the most of
    the repeats."""
    confidence: float
    """Of the interval of the median."""
    seconds_by_process: tuple[tuple[float, ...], ...]
    """For each repeat, in a process of its own, one sample per run, on one clip of latents."""
    frames: int
    """Of video, per run."""
    cold_start_seconds: float
    """Loading the program and its method and running it once, in a process that has its
    libraries loaded and nothing else. The median of the repeats."""
    peak_memory_bytes: int
    """Most resident memory that a process ever had, all its libraries included."""
    baseline_memory_bytes: int | None
    """The same before the program was loaded: libraries and interpreter. None where only
    the program's runner was loaded, as on a phone."""
    clips: int
    """How many clips it decoded."""
    background_cpu_share: float | None = None
    """Of all processors' time while it was timed: what other processes took. The most of the
    repeats; None where the device does not report it, as with all that follows."""
    temperature_celsius: float | None = None
    """At the end, of the hottest sensor."""
    coolest_celsius: float | None = None
    """Of the hottest sensor: the least that was read before, while and after it was timed, in any
    of the repeats."""
    hottest_celsius: float | None = None
    """The same: the most."""
    throttled: bool | None = None
    """Whether the device slowed itself down for heat, or was as hot as its maker slows it down."""
    energy_joules: float | None = None
    """Per run, of the first processor package; the most of the repeats."""
    cold_starts: tuple[float, ...] = ()
    """Seconds of each repeat, where there were several."""
    processes: int = 1
    """How many were measured until the last ones agreed, or there were enough."""
    unreliable_reason: str = ""
    """Why its times are no basis for a verdict; empty where they are."""

    def __post_init__(self) -> None:
        for name in ("device", "machine", "runtime", "package_sha256"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected text")
        for name, least in (
            ("threads", 1), ("warmup", 0), ("frames", 1), ("peak_memory_bytes", 1),
            ("baseline_memory_bytes", 1), ("clips", 1), ("processes", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "baseline_memory_bytes" and value is None:
                continue
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: found {value!r}, expected an integer from {least} on")
        if not isinstance(self.confidence, float) or not 0 < self.confidence < 1:
            raise ValueError(f"confidence: found {self.confidence!r}, expected between 0 and 1")
        check_seconds("cold_start_seconds", (self.cold_start_seconds, *self.cold_starts))
        if not self.seconds_by_process:
            raise ValueError("seconds_by_process: found none, expected at least one")
        for seconds in self.seconds_by_process:
            check_seconds("seconds_by_process", seconds)

    @property
    def latency(self) -> MedianInterval:
        """Of the median seconds per run, over all repeats; what no repeat allows is outside."""
        return together([interval_of_median(s, self.confidence) for s in self.seconds_by_process])

    @property
    def fps(self) -> float:
        """Frames of video per second, by the median."""
        return self.frames / self.latency.median

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes; with the interval, for readers that are no Python."""
        latency = self.latency
        return asdict(self) | {
            "seconds_by_process": [list(seconds) for seconds in self.seconds_by_process],
            "latency_seconds": [s for seconds in self.seconds_by_process for s in seconds],
            "median_latency_seconds": latency.median,
            "latency_interval_seconds": [latency.low, latency.high],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The measurement that `to_json` gave; keys beyond it are left alone.

        Raises:
            ValueError: a key is missing or a value impossible.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in document]:
            raise ValueError(f"missing: {', '.join(missing)}")
        values = {name: document[name] for name in names}
        values["seconds_by_process"] = _as_repeats(values["seconds_by_process"])
        values["cold_starts"] = tuple(values["cold_starts"])
        return cls(**values)


NOT_REPORTED: Mapping[str, Any] = {
    "background_cpu_share": None, "energy_joules": None, "temperature_celsius": None,
    "coolest_celsius": None, "hottest_celsius": None, "unreliable_reason": "", "processes": 1,
    "cold_starts": (),
}  # fmt: skip
"""Fields that a device does not report, of one process, for `Measurement.from_json`."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A program that failed on a device: a result like any other."""

    device: str
    machine: str
    runtime: str
    package_sha256: str
    reason: str
    """In a sentence, with its last words."""

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return asdict(self)


def check_seconds(name: str, values: tuple[float, ...]) -> None:
    """Raise ValueError where there is no value, or one is not a finite number above 0."""
    if not values:
        raise ValueError(f"{name}: found no sample, expected at least one")
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name}: found {value!r}, expected finite seconds above 0")


def _as_repeats(found: object) -> tuple[tuple[float, ...], ...]:
    if not isinstance(found, list | tuple) or not all(isinstance(x, list | tuple) for x in found):
        raise ValueError(f"seconds_by_process: found {found!r}, expected lists of seconds")
    return tuple(tuple(x) for x in found)
