"""What a device reports for a package, and what a device is: a function that reports it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

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
    """Runs before the first sample, besides the cold one."""
    latency_seconds: tuple[float, ...]
    """One sample per run of the program, on one clip of latents."""
    cold_start_seconds: float
    """Loading the program and its method and running it once, in a process that has its
    libraries loaded and nothing else."""
    peak_memory_bytes: int
    """Most resident memory that the process ever had, all its libraries included."""
    baseline_memory_bytes: int
    """The same before the program was loaded: libraries and interpreter, no part of a phone's."""
    clips: int
    """How many clips it decoded."""

    def __post_init__(self) -> None:
        for name in ("device", "machine", "runtime", "package_sha256"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name}: found {getattr(self, name)!r}, expected text")
        for name, least in (
            ("threads", 1), ("warmup", 0), ("peak_memory_bytes", 1),
            ("baseline_memory_bytes", 1), ("clips", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: found {value!r}, expected an integer from {least} on")
        check_seconds("cold_start_seconds", (self.cold_start_seconds,))
        check_seconds("latency_seconds", self.latency_seconds)

    @property
    def median_latency_seconds(self) -> float:
        """The median of the samples, which one busy moment of the host does not move."""
        return statistics.median(self.latency_seconds)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `json` takes."""
        return asdict(self) | {"latency_seconds": list(self.latency_seconds)}

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
        values["latency_seconds"] = _as_samples(values["latency_seconds"])
        return cls(**values)


class Measure(Protocol):
    """A device: it runs a package and reports."""

    def __call__(
        self,
        package_folder: Path,
        latents_npy: Path,
        *,
        threads: int,
        warmup: int,
        samples: int,
        out_folder: Path,
        timeout_seconds: float,
    ) -> Measurement:
        """Measure the package and decode every latent (N, C, t, h, w) into `out_folder`.

        Raises:
            Fault: the device crashed, hung, ran out of memory or reported nonsense.
        """


def check_seconds(name: str, values: tuple[float, ...]) -> None:
    """Raise ValueError where there is no value, or one is not a finite number above 0."""
    if not values:
        raise ValueError(f"{name}: found no sample, expected at least one")
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name}: found {value!r}, expected finite seconds above 0")


def _as_samples(found: object) -> tuple[float, ...]:
    if not isinstance(found, list | tuple):
        raise ValueError(f"latency_seconds: found {found!r}, expected a list of seconds")
    return tuple(found)
