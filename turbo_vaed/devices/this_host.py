"""This host behind the protocol of devices; `turbo_vaed.devices.host` does the work."""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from turbo_vaed.devices import _machine, host
from turbo_vaed.devices._runtimes import OPENERS
from turbo_vaed.devices.device import Facts, Handle, Ran, Tell, silent
from turbo_vaed.devices.measurement import DECODED_NAME, Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault
from turbo_vaed.export.package import Package


@dataclass(frozen=True, kw_only=True)
class HostDevice:
    """This machine."""

    name: str = "host"
    max_background_cpu_share: float = host.MAX_BACKGROUND_CPU_SHARE
    tell: Tell = silent

    def probe(self) -> Facts:
        now = _machine.state()
        return Facts(
            name=self.name,
            kind="host",
            model=host.machine(),
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
        return Handle(package=package, place=tempfile.mkdtemp(prefix="turbo-vaed-"))

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        found = host.measure(
            handle.package,
            latents_npy,
            plan=plan,
            out_folder=Path(handle.place),
            timeout_seconds=timeout_seconds,
            max_background_cpu_share=self.max_background_cpu_share,
            tell=self.tell,
        )
        clips = found.clips if isinstance(found, Measurement) else 0
        return Ran(
            handle=handle, plan=plan, clips=clips, place=handle.place, facts={"found": found}
        )

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        found = ran.facts["found"]
        if isinstance(found, Measurement):
            out_folder.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(ran.place) / DECODED_NAME, out_folder / DECODED_NAME)
            return found
        if isinstance(found, Failed):
            return found
        raise Fault(f"the host reported {found!r}, expected a measurement")

    def remove(self, handle: Handle) -> None:
        shutil.rmtree(handle.place, ignore_errors=True)
