"""An Android phone by `adb`: ExecuTorch packages in its `executor_runner`."""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from turbo_vaed.config.devices import AdbProfile
from turbo_vaed.devices import _android, _heat, _scratch
from turbo_vaed.devices._adb import Adb, chosen_phone
from turbo_vaed.devices.device import Facts, Handle, Ran, Tell, require_runs, silent
from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import TurboVaedError
from turbo_vaed.export.package import Package


@dataclass(frozen=True, kw_only=True)
class AdbDevice:
    """A phone; `root` is what a relative path of its profile is below."""

    profile: AdbProfile
    root: Path = Path()
    tell: Tell = silent

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def _adb(self) -> Adb:
        serial = chosen_phone(self.profile).serial
        return Adb(serial=serial, seconds=self.profile.command_seconds)

    @property
    def _runner(self) -> Path:
        return self.root / self.profile.runner

    def probe(self) -> Facts:
        facts, missing = Facts(name=self.name, kind="adb", runtimes=self.runtimes), []
        if not self._runner.is_file():
            missing.append(f"{self._runner}: {_android.HOW_TO_GET_THE_RUNNER}")
        try:
            facts = replace(facts, chosen=chosen_phone(self.profile).by)
            free = re.search(r"(\d+)\s+\d+%", self._adb("shell", "df -k /data/local/tmp"))
            facts = replace(
                facts,
                model=self._get("ro.product.manufacturer") + " " + self._get("ro.product.model"),
                system=f"Android {self._get('ro.build.version.release')}",
                abi=self._get("ro.product.cpu.abi"),
                free_bytes=None if free is None else int(free[1]) * 1024,
                temperature_celsius=self._celsius(),
            )
        except TurboVaedError as error:
            missing.append(str(error))
        return replace(facts, missing=tuple(missing))

    @property
    def runtimes(self) -> tuple[str, ...]:
        return _android.RUNTIMES

    def push(self, package: Package) -> Handle:
        require_runs(self, package)
        _android.check_runner(self._runner, self.name)
        self.tell(0.0, "runner and program to the phone")
        self._remove_leftovers()
        place = f"{self.profile.folder}/{_scratch.new_name()}"
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
        self.tell(0.1, "latents to the phone")
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            folder = Path(scratch)
            clips = _android.write_inputs(
                handle.package, latents_npy, plan, folder, timeout_seconds=timeout_seconds
            )
            for file in sorted(folder.iterdir()):
                self._adb("push", str(file), f"{place}/{file.name}")
        self.tell(0.2, f"{_android.REPEATS} timed processes on the phone, then {clips} clips")
        most = timeout_seconds * (_android.REPEATS + clips) + self.profile.command_seconds
        self._adb("shell", f"sh {place}/{_android.SCRIPT}", seconds=most)
        phone = _android.Phone(name=self.name, machine=self._machine())
        return Ran(
            handle=handle, plan=plan, clips=clips, place=place, facts={"phone": phone},
            is_repeatable=True,
        )  # fmt: skip

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        phone = ran.facts["phone"]
        assert isinstance(phone, _android.Phone)
        self.tell(0.9, "frames from the phone")
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

    def _machine(self) -> str:
        """Which phone it is; the serial where no line of params.yaml tells it."""
        chosen = chosen_phone(self.profile)
        model, abi = self._get("ro.product.model"), self._get("ro.product.cpu.abi")
        android = self._get("ro.build.version.release")
        named = f" (ANDROID_SERIAL={chosen.serial})" if chosen.by_environment else ""
        return f"{model}, {abi}, Android {android}{named}"

    def _celsius(self) -> float | None:
        said = self._adb("shell", f"echo '{_heat.MARK}'; dumpsys thermalservice; dumpsys battery")
        return _heat.read_heat(said).temperature_celsius

    def _remove_leftovers(self) -> None:
        """Of measurements that lost this phone before they could clean up."""
        folder = self.profile.folder
        found = _scratch.leftovers(self._adb("shell", _scratch.listing(folder)))
        if found:
            self._adb("shell", f"cd {folder} && rm -rf {' '.join(found)}")
