"""An Android phone by `adb`: ExecuTorch packages in its `executor_runner`."""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from turbo_vaed.device_params import AdbProfile
from turbo_vaed.devices import _android
from turbo_vaed.devices._adb import Adb
from turbo_vaed.devices.device import Facts, Handle, Ran, require_runs
from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import TurboVaedError
from turbo_vaed.export.package import Package


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
        facts, missing = Facts(name=self.name, kind="adb", runtimes=_android.RUNTIMES), []
        if not self._runner.is_file():
            missing.append(f"{self._runner}: {_android.HOW_TO_GET_THE_RUNNER}")
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
        return package.runtime in _android.RUNTIMES

    def push(self, package: Package) -> Handle:
        require_runs(self, package, _android.RUNTIMES)
        _android.check_runner(self._runner, self.name)
        place = f"{self.profile.folder}/{uuid.uuid4().hex}"
        handle = Handle(package=package, place=place)
        try:
            self._adb("shell", f"mkdir -p {place}")
            self._adb("push", str(self._runner), f"{place}/{_android.RUNNER}")
            self._adb("push", str(package.program_path), f"{place}/{package.program}")
            self._adb("shell", f"chmod 755 {place}/{_android.RUNNER}")
        except TurboVaedError:
            self.remove(handle)
            raise
        return handle

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process, as on the host."""
        place = handle.place
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            folder = Path(scratch)
            clips = _android.write_inputs(
                handle.package, latents_npy, plan, timeout_seconds, folder
            )
            for file in sorted(folder.iterdir()):
                self._adb("push", str(file), f"{place}/{file.name}")
        most = timeout_seconds * (_android.REPEATS + clips) + self.profile.command_seconds
        self._adb("shell", f"sh {place}/{_android.SCRIPT}", seconds=most)
        celsius, throttled = self._heat()
        machine = (
            f"{self._get('ro.product.model')}, {self._get('ro.product.cpu.abi')}, Android "
            + (self._get("ro.build.version.release"))
        )
        phone = _android.Phone(
            name=self.name, machine=machine, celsius=celsius, throttled=throttled
        )
        return Ran(handle=handle, plan=plan, clips=clips, place=place, facts={"phone": phone})

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        phone = ran.facts["phone"]
        assert isinstance(phone, _android.Phone)
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            self._adb("pull", f"{ran.place}/.", scratch)
            return _android.read_outputs(
                Path(scratch), phone, ran.handle.package, ran.plan, ran.clips, out_folder
            )

    def remove(self, handle: Handle) -> None:
        with contextlib.suppress(TurboVaedError):  # it is gone, and what follows says so
            self._adb("shell", f"rm -rf {handle.place}")

    def _get(self, name: str) -> str:
        return self._adb("shell", f"getprop {name}").strip() or "unknown"

    def _heat(self) -> tuple[float | None, bool | None]:
        return _android.read_heat(
            self._adb("shell", "dumpsys thermalservice"), self._adb("shell", "dumpsys battery")
        )
