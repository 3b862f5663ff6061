"""An Android phone by `adb`: ExecuTorch packages in its `executor_runner`."""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from turbo_vaed.device_params import AdbProfile
from turbo_vaed.devices import _android, host
from turbo_vaed.devices._adb import Adb
from turbo_vaed.devices.device import Facts, Handle, Ran
from turbo_vaed.devices.measurement import DECODED_NAME, Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export.package import Package

RUNTIMES = ("executorch-xnnpack",)
_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class AdbDevice:
    """A phone; `root` is what a relative path of its profile is below."""

    profile: AdbProfile
    root: Path = Path()

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def _adb(self) -> Adb:
        return Adb(serial=self.profile.serial, seconds=self.profile.command_seconds)

    @property
    def _runner(self) -> Path:
        return self.root / self.profile.runner

    def probe(self) -> Facts:
        facts, missing = Facts(name=self.name, kind="adb", runtimes=RUNTIMES), []
        if not self._runner.is_file():
            missing.append(
                f"{self._runner}: build executor_runner of ExecuTorch 1.x for the phone, with "
                "EXECUTORCH_BUILD_XNNPACK and EXECUTORCH_ENABLE_LOGGING"
            )
        try:
            free = re.search(r"(\d+)\s+\d+%", self._adb("shell", "df -k /data/local/tmp"))
            facts = replace(
                facts,
                model=self._get("ro.product.manufacturer") + " " + self._get("ro.product.model"),
                system=f"Android {self._get('ro.build.version.release')}",
                abi=self._get("ro.product.cpu.abi"),
                free_bytes=None if free is None else int(free[1]) * 1024,
                temperature_celsius=self._heat()[0],
            )
        except TurboVaedError as error:
            missing.append(str(error))
        return replace(facts, missing=tuple(missing))

    def runs(self, package: Package) -> bool:
        return package.runtime in RUNTIMES

    def push(self, package: Package) -> Handle:
        if not self.runs(package):
            raise UserError(
                f"{package.target}: {self.name} runs packages for {', '.join(RUNTIMES)} only"
            )
        if not self._runner.is_file():
            raise UserError(f"{self._runner}: no such runner; turbo-vaed devices probe {self.name}")
        place = f"{self.profile.folder}/{uuid.uuid4().hex}"
        handle = Handle(package=package, place=place)
        try:
            self._adb("shell", f"mkdir -p {place}")
            self._adb("push", str(self._runner), f"{place}/executor_runner")
            self._adb("push", str(package.program_path), f"{place}/{package.program}")
            self._adb("shell", f"chmod 755 {place}/executor_runner")
        except TurboVaedError:
            self.remove(handle)
            raise
        return handle

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process, as on the host."""
        import numpy as np

        io, place = handle.package.io, handle.place
        clips = host.check_latents(latents_npy, io.latent_shape)
        latents = np.load(latents_npy, mmap_mode="r")
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            for i in range(clips):
                clip = Path(scratch) / f"in{i}.bin"
                clip.write_bytes(latents[i].astype(_DTYPES[io.latent_dtype]).tobytes())
                self._adb("push", str(clip), f"{place}/in{i}.bin")
            script = Path(scratch) / "run.sh"
            script.write_text(_android.script(handle.package, plan, clips, timeout_seconds))
            self._adb("push", str(script), f"{place}/run.sh")
        most = timeout_seconds * (_android.REPEATS + clips) + self.profile.command_seconds
        self._adb("shell", f"sh {place}/run.sh", seconds=most)
        celsius, throttled = self._heat()
        machine = (
            f"{self._get('ro.product.model')}, {self._get('ro.product.cpu.abi')}, Android "
            + (self._get("ro.build.version.release"))
        )
        facts = {"celsius": celsius, "throttled": throttled, "machine": machine}
        return Ran(handle=handle, plan=plan, clips=clips, place=place, facts=facts)

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        package = ran.handle.package
        common = {
            "device": self.name,
            "machine": str(ran.facts["machine"]),
            "runtime": f"executor_runner ({package.runtime})",
            "package_sha256": package.sha256,
        }
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            self._adb("pull", f"{ran.place}/.", scratch)
            folder = Path(scratch)
            code = _android._text(folder / "code").strip()
            if not code.isdigit():
                raise Fault(f"{self.name} left no exit code of the runner, found {code!r}")
            if code != "0":
                words = _android._text(folder / "failed.log").strip()[-500:] or "none"
                how = (
                    "was stopped, it took too long"
                    if code == str(_android.TIMEOUT_CODE)
                    else (f"failed with exit code {code}")
                )
                return Failed(**common, reason=f"the runner {how}; its last words: {words}")
            out_folder.mkdir(parents=True, exist_ok=True)
            _decoded(folder, package, ran.clips, out_folder / DECODED_NAME)
            return self._measurement(ran, folder, common)

    def remove(self, handle: Handle) -> None:
        with contextlib.suppress(TurboVaedError):  # it is gone, and what follows says so
            self._adb("shell", f"rm -rf {handle.place}")

    def _measurement(self, ran: Ran, folder: Path, common: dict[str, str]) -> Measurement:
        runs = []
        for i in range(_android.REPEATS):
            cold, seconds, peak = _android.read_timed(folder, f"timed{i}", ran.plan)
            try:
                found = Measurement.from_json({
                    **common,
                    "threads": ran.plan.threads, "warmup": ran.plan.max_warmup,
                    "confidence": ran.plan.confidence, "seconds_by_process": [seconds],
                    "frames": ran.handle.package.io.video_shape[2], "cold_start_seconds": cold,
                    "peak_memory_bytes": peak, "baseline_memory_bytes": None, "clips": ran.clips,
                    "others_share": None, "temperature_celsius": ran.facts["celsius"],
                    "throttled": ran.facts["throttled"], "energy_joules": None,
                    "distrust": "", "processes": 1,
                })  # fmt: skip
            except ValueError as error:
                raise Fault(f"{self.name} reported nonsense: {error}") from error
            runs.append(found)
        return host.joined(runs, ran.plan, 1.0)

    def _get(self, name: str) -> str:
        return self._adb("shell", f"getprop {name}").strip() or "unknown"

    def _heat(self) -> tuple[float | None, bool | None]:
        """Celsius, and whether the phone slows itself down; Android's status 0 is no throttling."""
        said = self._adb("shell", "dumpsys thermalservice")
        status = re.search(r"Thermal Status: (\d+)", said)
        battery = re.search(r"temperature: (\d+)", self._adb("shell", "dumpsys battery"))
        return (
            None if battery is None else int(battery[1]) / 10,
            None if status is None else int(status[1]) > 0,
        )


def _decoded(folder: Path, package: Package, clips: int, path: Path) -> None:
    """Put the clips' frames together in one .npy.

    Raises:
        Fault: a clip is missing, or has not the size that the package promises.
    """
    import numpy as np

    shape, dtype = package.io.video_shape[1:], np.dtype(_DTYPES[package.io.video_dtype])
    size = int(np.prod(shape)) * dtype.itemsize
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(clips, *shape))
    for i in range(clips):
        made = folder / f"clip{i}-0.bin"
        found = made.stat().st_size if made.is_file() else 0
        if found != size:
            path.unlink()
            raise Fault(f"the device put out {found} bytes for clip {i}, {size} were expected")
        out[i] = np.fromfile(made, dtype=dtype).reshape(shape)
    out.flush()
