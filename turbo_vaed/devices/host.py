"""This host as a device: the ExecuTorch runtime in a process of its own."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from turbo_vaed.devices._child import run_module
from turbo_vaed.devices.measurement import DECODED_NAME, Measurement
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export.package import Package, load_package

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def measure(
    package_folder: Path,
    latents_npy: Path,
    *,
    threads: int,
    warmup: int,
    samples: int,
    out_folder: Path,
    timeout_seconds: float,
) -> Measurement:
    """Measure a package on this host; see `turbo_vaed.devices.Measure`.

    `latents_npy` is float32 (N, C, t, h, w) in the scale that the package takes. What it put
    out is `out_folder/decoded.npy`, float32 (N, 3, T, H, W), in the order of the latents.

    Raises:
        CorruptFile: the package is not what was written.
        UserError: the latents do not fit the package, or a count is too small.
        Fault: the process crashed, hung, was killed, or reported nonsense.
    """
    check_counts(threads=threads, warmup=warmup, samples=samples)
    try:
        package = load_package(package_folder)
    except (FileNotFoundError, ValueError) as error:
        raise CorruptFile(f"{error}; run the export stage again") from error
    clips = check_latents(latents_npy, package.io.latent_shape)
    out_folder.mkdir(parents=True, exist_ok=True)
    decoded = out_folder / DECODED_NAME
    decoded.unlink(missing_ok=True)
    what = f"the ExecuTorch runtime with {package.program_path}"
    arguments = [package.program_path, latents_npy, decoded, threads, warmup, samples]
    reported = run_module(
        "turbo_vaed.devices._host_runner",
        [str(argument) for argument in arguments],
        threads=threads,
        timeout_seconds=timeout_seconds,
        what=what,
    )
    _check_decoded(decoded, package, clips)
    try:
        measurement = Measurement.from_json(
            {
                **reported,
                "device": "host",
                "machine": machine(),
                "runtime": f"executorch {version('executorch')}, XNNPACK",
                "package_sha256": package.sha256,
                "threads": threads,
                "warmup": warmup,
                "clips": clips,
            }
        )
    except ValueError as error:
        raise Fault(f"{what} reported nonsense: {error}") from error
    if len(measurement.latency_seconds) != samples:
        raise Fault(
            f"{what} reported {len(measurement.latency_seconds)} samples, expected {samples}"
        )
    return measurement


def read_decoded(out_folder: Path) -> NDArray[np.float32]:
    """What the device put out, (N, 3, T, H, W), mapped from its file and not loaded."""
    import numpy as np

    decoded: NDArray[np.float32] = np.load(out_folder / DECODED_NAME, mmap_mode="r")
    return decoded


def check_counts(*, threads: int, warmup: int, samples: int) -> None:
    """Raise UserError where nothing could be measured with these."""
    for name, value, least in (
        ("threads", threads, 1), ("warmup", warmup, 0), ("samples", samples, 1)
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{name}: found {value}, expected at least {least}")


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
    """This host in words: processor and system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {platform.system()} {platform.machine()}"


def _check_decoded(path: Path, package: Package, clips: int) -> None:
    import numpy as np

    expected = (clips, *package.io.video_shape[1:])
    try:
        decoded = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise Fault(f"the device left no whole {path.name}: {error}") from error
    if decoded.dtype != np.float32 or decoded.shape != expected:
        raise Fault(
            f"the device put out {decoded.dtype} of shape {decoded.shape}, "
            f"the package promises float32 {expected}"
        )
