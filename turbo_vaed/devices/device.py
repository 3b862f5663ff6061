"""One protocol for whatever runs a package: probe, push, run, collect, remove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import UserError
from turbo_vaed.export.package import Package

ROUNDS = 2
"""Of a device's processes, at most, until they agree."""
RAW_DTYPES = {"float32": "<f4", "float16": "<f2"}
"""A package's dtype -> numpy's, in the raw files that a runner on a device reads and writes."""
ReportProgress = Callable[[float, str], None]
"""Called with the share of a measurement that is done, 0 to 1, and with what comes now."""


def no_report(_share: float, _text: str) -> None:
    """Reports to nobody."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a device reports about itself; None where it does not."""

    name: str
    kind: str
    chosen: str | None = None
    """What decided which one it is, where there may be several."""
    model: str | None = None
    system: str | None = None
    abi: str | None = None
    free_bytes: int | None = None
    temperature_celsius: float | None = None
    runtimes: tuple[str, ...] = ()
    """Of packages that it can run."""
    missing: tuple[str, ...] = ()
    """What keeps it from measuring, and how to get it; empty where it is ready."""


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A package on a device."""

    package: Package
    location: str
    """Where the package lies: a folder on the device, or here for it."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A program that has run on a device; its results are still there."""

    handle: Handle
    plan: Plan
    clips: int
    location: str
    """Where its results lie."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What only the device's own `collect` reads."""
    is_repeatable: bool = False
    """Whether it may run once more where its processes disagree: that costs no money, and the
    device has not done so by itself."""


class Device(Protocol):
    """Where a package is measured."""

    @property
    def name(self) -> str:
        """Of its profile in devices.yaml."""

    def probe(self) -> Facts:
        """What it reports about itself; what is missing is a fact, not an error."""

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Of the packages that it can run."""

    def push(self, package: Package) -> Handle:
        """Bring a package there. Raises UserError or Fault where it cannot be reached."""

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """Time the program by the plan, and decode every clip of float32 (N, C, t, h, w)."""

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        """What was measured, and `out_folder/decoded.npy`, float32 (N, 3, T, H, W), in the order
        of the latents. A program that crashed or hung has `Failed`."""

    def remove(self, handle: Handle) -> None:
        """Leave nothing behind; a device that is gone is left alone."""


def require_runs(device: Device, package: Package) -> None:
    """Raises UserError where the device has not the package's runtime."""
    if package.runtime not in device.runtimes:
        raise UserError(
            f"{package.target}: {device.name} runs packages for {', '.join(device.runtimes)} only; "
            "give it one of those, or name another device"
        )


def measure_on(
    device: Device,
    package: Package,
    latents_npy: Path,
    *,
    plan: Plan,
    out_folder: Path,
    timeout_seconds: float,
) -> Measurement | Failed:
    """Push, run, collect, and clean up whatever happens.

    Where the processes are further apart than the plan's `max_spread`, a device that can repeat the
    measurement at no cost does so once, and the last round counts.

    Raises:
        UserError: the latents do not fit, or the device needs a person.
        Fault: the device was lost, or sent an invalid report.
    """
    handle = device.push(package)
    try:
        rounds = processes = 0
        while True:
            ran = device.run(handle, latents_npy, plan, timeout_seconds=timeout_seconds)
            found = device.collect(ran, out_folder)
            if isinstance(found, Failed):
                return found
            rounds, processes = rounds + 1, processes + found.processes
            agree = found.latency.spread <= plan.max_spread
            if agree or not ran.is_repeatable or rounds == ROUNDS:
                return replace(found, processes=processes)
    finally:
        device.remove(handle)
