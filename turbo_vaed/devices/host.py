"""This host as a device: a package's runtime in a process of its own."""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.devices import _machine
from turbo_vaed.devices._runtimes import OPENERS
from turbo_vaed.devices.device import Facts, Handle, Ran, ReportProgress, no_report
from turbo_vaed.devices.measurement import DECODED_NAME, Failed, Measurement
from turbo_vaed.devices.timing import Plan, interval_of_median, together
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export.package import Package, load_package
from turbo_vaed.runtime.isolated import ChildFailed, run_module

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DISTRIBUTIONS = {
    "executorch-xnnpack": "executorch",
    "litert": "ai-edge-litert",
    "onnx": "onnxruntime",
}
"""The distribution of each runtime; a measurement records its version."""
REPEATS = 2
"""Processes that must agree."""
TRIES = 4
"""Processes at most: two that agree among the last ones are enough."""
MAX_BACKGROUND_CPU_SHARE = 0.25
"""Of all processors' time; where other processes take more, times are no basis for a verdict."""


def measure(
    package: Package,
    latents_npy: Path,
    *,
    plan: Plan,
    out_folder: Path,
    timeout_seconds: float,
    max_background_cpu_share: float = MAX_BACKGROUND_CPU_SHARE,
    report_progress: ReportProgress = no_report,
) -> Measurement | Failed:
    """Measure a package on this host, and decode every clip of latents.

    `latents_npy` is float32 (N, C, t, h, w) in the scale that the package takes. What it put
    out is `out_folder/decoded.npy`, float32 (N, 3, T, H, W), in the order of the latents.

    It is measured in processes of its own until two in a row agree within the plan's spread,
    four times at most. Where they do not, the interval is as wide as they are apart; where that is
    beyond the plan's `refused_spread`, or other processes kept the machine busy,
    `Measurement.unreliable_reason` says so.

    Raises:
        UserError: the latents do not fit the package, or it does not run on this host.
        Fault: a process sent an invalid report.
    """
    runtime = _runtime(package)
    found: list[Measurement] = []
    for i in range(TRIES):
        report_progress(i / TRIES, f"process {i + 1}, at most {TRIES}")
        try:
            found.append(_once(package, latents_npy, plan, out_folder, timeout_seconds))
        except ChildFailed as error:
            return Failed(
                device="host", machine=machine(), runtime=runtime,
                package_sha256=package.sha256, reason=str(error),
            )  # fmt: skip
        last = found[-REPEATS:]
        if len(last) == REPEATS and not _why_not(
            last, plan, max_background_cpu_share, plan.max_spread
        ):
            break
    joint = joined(found[-REPEATS:], plan, max_background_cpu_share)
    return replace(joint, processes=len(found))


def decode(
    package: Package, latents_npy: Path, *, out_folder: Path, timeout_seconds: float
) -> None:
    """Decode latents into `out_folder/decoded.npy` as `measure` does, and time nothing.

    Raises:
        UserError: the latents do not fit the package, or it does not run on this host.
        Fault: the process crashed, hung, was killed, or put out something else.
    """
    _run(package, latents_npy, None, out_folder, timeout_seconds)


def _once(
    package: Package, latents_npy: Path, plan: Plan, out_folder: Path, timeout_seconds: float
) -> Measurement:
    clips, reported = _run(package, latents_npy, plan, out_folder, timeout_seconds)
    energy, samples = reported.pop("energy_joules", None), reported.pop("latency_seconds", None)
    try:
        return Measurement.from_json(
            {
                **reported,
                "seconds_by_process": [samples],
                "energy_joules": None if energy is None or not samples else energy / len(samples),
                "device": "host",
                "machine": machine(),
                "runtime": _runtime(package),
                "package_sha256": package.sha256,
                "threads": plan.threads,
                "confidence": plan.confidence,
                "frames": package.io.video_shape[2],
                "clips": clips,
                "processes": 1,
                "cold_starts": (),
                "unreliable_reason": "",
            }
        )
    except ValueError as error:
        raise Fault(f"{_runtime(package)} sent an invalid report: {error}") from error


def _run(
    package: Package, latents_npy: Path, plan: Plan | None, out_folder: Path, timeout_seconds: float
) -> tuple[int, dict[str, Any]]:
    """A process that decodes; how many clips there were, and what it reported."""
    clips = check_latents(latents_npy, package.io.latent_shape)
    out_folder.mkdir(parents=True, exist_ok=True)
    decoded = out_folder / DECODED_NAME
    decoded.unlink(missing_ok=True)
    arguments = [
        package.runtime, str(package.program_path), str(latents_npy), str(decoded),
        json.dumps(None if plan is None else asdict(plan)),
    ]  # fmt: skip
    reported = run_module(
        "turbo_vaed.devices._host_runner",
        arguments,
        threads=1 if plan is None else plan.threads,
        timeout_seconds=timeout_seconds,
        what=f"{_runtime(package)} with {package.program_path}",
    )
    check_decoded(decoded, package, clips)
    return clips, reported


def joined(runs: Sequence[Measurement], plan: Plan, max_background_cpu_share: float) -> Measurement:
    """Several processes' measurements as one."""

    def most(name: str) -> Any:
        found = [x for x in (getattr(run, name) for run in runs) if x is not None]
        return max(found) if found else None

    names = (
        "warmup", "peak_memory_bytes", "baseline_memory_bytes", "background_cpu_share",
        "temperature_celsius", "hottest_celsius", "throttled", "energy_joules",
    )  # fmt: skip
    coolest = [run.coolest_celsius for run in runs if run.coolest_celsius is not None]
    both: Mapping[str, Any] = {
        **asdict(runs[-1]),
        **{name: most(name) for name in names},
        "coolest_celsius": min(coolest, default=None),
        "seconds_by_process": [s for run in runs for s in run.seconds_by_process],
        "cold_start_seconds": statistics.median(run.cold_start_seconds for run in runs),
        "cold_starts": [run.cold_start_seconds for run in runs],
        "processes": len(runs),
        "unreliable_reason": _why_not(
            runs, plan, max_background_cpu_share, max(plan.max_spread, plan.refused_spread)
        ),
    }
    return Measurement.from_json(both)


def _why_not(
    runs: Sequence[Measurement], plan: Plan, max_background_cpu_share: float, max_spread: float
) -> str:
    """Why these measurements are no basis for a verdict; empty where they are."""
    busy = max((run.background_cpu_share or 0.0 for run in runs), default=0.0)
    if busy > max_background_cpu_share:
        return (
            f"other processes took {busy:.0%} of this machine meanwhile, allowed <= "
            f"{max_background_cpu_share:.0%}: stop them and measure again"
        )
    each = [interval_of_median(s, plan.confidence) for run in runs for s in run.seconds_by_process]
    latency = together(each)
    if latency.spread > max_spread:
        return (
            f"the median lies between {latency.low:.4g} and {latency.high:.4g} s in {len(runs)} "
            f"processes: spread {latency.spread:.0%}, allowed <= {max_spread:.0%}: "
            "measure on a quiet machine, or allow more samples"
        )
    if any(run.throttled for run in runs):
        return "the machine slowed itself down for heat: let it cool and measure again"
    return ""


def open_package(folder: Path) -> Package:
    """The package in a folder.

    Raises:
        CorruptFile: it is not what was written.
    """
    try:
        return load_package(folder)
    except (FileNotFoundError, ValueError) as error:
        raise CorruptFile(f"{error}; run the export stage again") from error


def _runtime(package: Package) -> str:
    """What runs it, with its version."""
    if package.runtime not in OPENERS:
        raise UserError(
            f"{package.target}: found a package that does not run on this host, "
            f"expected one for {' or '.join(OPENERS)}; name another device, or give another package"
        )
    distribution = DISTRIBUTIONS[package.runtime]
    return f"{distribution} {version(distribution)} ({package.runtime})"


def read_decoded(out_folder: Path) -> NDArray[np.float32]:
    """What the device put out, (N, 3, T, H, W), mapped from its file and not loaded."""
    import numpy as np

    decoded: NDArray[np.float32] = np.load(out_folder / DECODED_NAME, mmap_mode="r")
    return decoded


def check_latents(path: Path, latent_shape: tuple[int, ...] | None = None) -> int:
    """How many clips a latents file holds.

    Raises:
        UserError: it is not a .npy of float32 (N, C, t, h, w), N at least 1, or not of the
            `latent_shape` (1, C, t, h, w).
    """
    import numpy as np

    try:
        latents = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a .npy file of latents: {error}") from None
    if latents.dtype != np.float32 or latents.ndim != 5 or not len(latents):
        raise UserError(
            f"{path}: found {latents.dtype} of shape {latents.shape}, "
            f"expected float32 (N, C, t, h, w)"
        )
    if latent_shape is not None and (1, *latents.shape[1:]) != latent_shape:
        raise UserError(
            f"{path}: found latents of shape {latents.shape}, the package takes one clip of "
            f"{latent_shape} at a time; export for the shape of these latents"
        )
    return len(latents)


def machine() -> str:
    """This host's processor and system, for a person."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {platform.system()} {platform.machine()}"


def check_decoded(path: Path, package: Package, clips: int) -> None:
    """Raises Fault where a device's output is not what its package promises."""
    import numpy as np

    expected = (clips, *package.io.video_shape[1:])
    try:
        decoded = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise Fault(f"the device's {path.name} is missing or incomplete: {error}") from error
    if decoded.dtype != np.float32 or decoded.shape != expected:
        raise Fault(
            f"the device's output is {decoded.dtype} of shape {decoded.shape}; the package "
            f"declares float32 of shape {expected}"
        )


@dataclass(frozen=True, kw_only=True)
class HostDevice:
    """This machine behind the protocol of devices."""

    name: str = "host"
    max_background_cpu_share: float = MAX_BACKGROUND_CPU_SHARE
    report_progress: ReportProgress = no_report

    def probe(self) -> Facts:
        now = _machine.state()
        return Facts(
            name=self.name,
            kind="host",
            model=machine(),
            system=f"{platform.system()} {platform.release()}",
            abi=platform.machine(),
            free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
            temperature_celsius=_machine.between(now, now).temperature_celsius,
            runtimes=self.runtimes,
        )

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(OPENERS)

    def push(self, package: Package) -> Handle:
        """It is there already; the folder is for what comes out."""
        return Handle(package=package, location=tempfile.mkdtemp(prefix="turbo-vaed-"))

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        found = measure(
            handle.package,
            latents_npy,
            plan=plan,
            out_folder=Path(handle.location),
            timeout_seconds=timeout_seconds,
            max_background_cpu_share=self.max_background_cpu_share,
            report_progress=self.report_progress,
        )
        clips = found.clips if isinstance(found, Measurement) else 0
        return Ran(
            handle=handle, plan=plan, clips=clips, location=handle.location, facts={"found": found}
        )

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        found = ran.facts["found"]
        if isinstance(found, Measurement):
            out_folder.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(ran.location) / DECODED_NAME, out_folder / DECODED_NAME)
            return found
        if isinstance(found, Failed):
            return found
        raise Fault(f"the host reported {found!r}, expected a measurement")

    def remove(self, handle: Handle) -> None:
        shutil.rmtree(handle.location, ignore_errors=True)
