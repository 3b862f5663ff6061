"""An Android phone by `adb`: ExecuTorch packages in its `executor_runner`."""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from turbo_vaed.config.devices import AdbProfile
from turbo_vaed.devices import _android, _heat, _scratch
from turbo_vaed.devices._ssh import KnownFailures, call
from turbo_vaed.devices.device import Facts, Handle, Ran, ReportProgress, no_report, require_runs
from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export.package import Package
from turbo_vaed.settings import android_serial

_KNOWN_FAILURES: KnownFailures = (
    ("unauthorized", UserError, "unlock the phone and allow USB debugging for this computer"),
    ("more than one device", UserError, "name one: serial in its profile in devices.yaml"),
    ("No space left", UserError, "free some space on the phone"),
    ("no devices", UserError, "connect a phone and turn USB debugging on"),
    ("offline", Fault, "pull the cable and plug it in again, or: adb reconnect"),
    ("device '", Fault, "it is not connected (any more): look at the cable, and adb devices"),
    ("device disconnected", Fault, "it was unplugged: plug it in and start again"),
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which of the phones that may be there a profile means."""

    serial: str | None
    """None: the only one."""
    by: str
    """What decided it, for a person."""
    by_environment: bool = False


def chosen_phone(profile: AdbProfile) -> Chosen:
    """The profile's serial, else that of ANDROID_SERIAL, else the only phone.

    Raises:
        UserError: the environment names another phone than the profile.
    """
    named, environment = profile.serial, android_serial()
    if named is None and environment is None:
        return Chosen(serial=None, by="the only one that is connected")
    if named is None:
        return Chosen(
            serial=environment, by=f"ANDROID_SERIAL={environment}, the profile names none",
            by_environment=True,
        )  # fmt: skip
    if environment not in (None, named):
        raise UserError(
            f"ANDROID_SERIAL is {environment}, devices.{profile.name}.serial in devices.yaml is "
            f"{named}: expected the same phone; unset ANDROID_SERIAL, or correct the profile"
        )
    return Chosen(serial=named, by=f"serial {named} of the profile")


@dataclass(frozen=True, kw_only=True)
class Adb:
    """A phone behind `adb`."""

    serial: str | None
    seconds: float
    """Of one command."""

    def __call__(self, *arguments: str, seconds: float | None = None) -> str:
        """Run `adb ARGUMENTS`; its stdout.

        Raises:
            UserError: adb is not installed, or a person has to act.
            Fault: the phone is gone or does not answer.
        """
        chosen = [] if self.serial is None else ["-s", self.serial]
        return call(
            ["adb", *chosen, *arguments],
            what=f"adb {' '.join(arguments)[:80]}",
            seconds=self.seconds if seconds is None else seconds,
            known_failures=_KNOWN_FAILURES,
            if_not_installed="adb is not installed; get it with Android's platform-tools "
            "(apt install adb, or brew install android-platform-tools)",
        )


@dataclass(frozen=True, kw_only=True)
class AdbDevice:
    """A phone; `root` is what a relative path of its profile is below."""

    profile: AdbProfile
    root: Path = Path()
    report_progress: ReportProgress = no_report

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
        self.report_progress(0.0, "runner and program to the phone")
        self._remove_leftovers()
        location = f"{self.profile.folder}/{_scratch.new_name()}"
        handle = Handle(package=package, location=location)
        try:
            self._adb("shell", f"mkdir -p {location}")
            self._adb("push", str(self._runner), f"{location}/{_android.RUNNER}")
            self._adb("push", str(package.program_path), f"{location}/{package.program}")
            self._adb("shell", f"chmod 755 {location}/{_android.RUNNER}")
        except TurboVaedError:
            self.remove(handle)
            raise
        return handle

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process, as on the host."""
        location = handle.location
        self.report_progress(0.1, "latents to the phone")
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            folder = Path(scratch)
            clips = _android.write_inputs(
                handle.package, latents_npy, plan, folder, timeout_seconds=timeout_seconds
            )
            for file in sorted(folder.iterdir()):
                self._adb("push", str(file), f"{location}/{file.name}")
        self.report_progress(
            0.2, f"{_android.REPEATS} timed processes on the phone, then {clips} clips"
        )
        most = timeout_seconds * (_android.REPEATS + clips) + self.profile.command_seconds
        self._adb("shell", f"sh {location}/{_android.SCRIPT}", seconds=most)
        phone = _android.Phone(name=self.name, machine=self._machine())
        return Ran(
            handle=handle, plan=plan, clips=clips, location=location, facts={"phone": phone},
            is_repeatable=True,
        )  # fmt: skip

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        phone = ran.facts["phone"]
        assert isinstance(phone, _android.Phone)
        self.report_progress(0.9, "frames from the phone")
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            self._adb("pull", f"{ran.location}/.", scratch)
            return _android.read_outputs(
                Path(scratch), phone, ran.handle.package, ran.plan, ran.clips, out_folder
            )

    def remove(self, handle: Handle) -> None:
        with contextlib.suppress(TurboVaedError):  # it is gone, and what follows says so
            self._adb("shell", f"rm -rf {handle.location}")

    def _get(self, name: str) -> str:
        return self._adb("shell", f"getprop {name}").strip() or "unknown"

    def _machine(self) -> str:
        """Which phone it is; the serial where its profile names none."""
        chosen = chosen_phone(self.profile)
        model, abi = self._get("ro.product.model"), self._get("ro.product.cpu.abi")
        android = self._get("ro.build.version.release")
        named = f" (ANDROID_SERIAL={chosen.serial})" if chosen.by_environment else ""
        return f"{model}, {abi}, Android {android}{named}"

    def _celsius(self) -> float | None:
        output = self._adb("shell", f"echo '{_heat.MARK}'; dumpsys thermalservice; dumpsys battery")
        return _heat.read_heat(output).temperature_celsius

    def _remove_leftovers(self) -> None:
        """Of measurements that lost this phone before they could clean up."""
        folder = self.profile.folder
        found = _scratch.leftovers(self._adb("shell", _scratch.listing(folder)))
        if found:
            self._adb("shell", f"cd {folder} && rm -rf {' '.join(found)}")
