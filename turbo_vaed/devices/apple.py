"""A Mac by `ssh`: Core ML packages in Core ML itself, on the compute units of its profile."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import tempfile
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from turbo_vaed.config.devices import AppleProfile
from turbo_vaed.devices import _apple_runner, host, timing
from turbo_vaed.devices._ssh import Ssh
from turbo_vaed.devices.device import Facts, Handle, Ran, ReportProgress, no_report, require_runs
from turbo_vaed.devices.measurement import DECODED_NAME, NOT_REPORTED, Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export.package import Package

RUNTIMES = ("coreml",)
_CHECK = "import sys; assert sys.version_info >= (3, 10), sys.version; import coremltools, numpy"
_ALARM = 142
"""The exit code of a shell whose command was ended by SIGALRM: the runner's own time limit."""


@dataclass(frozen=True, kw_only=True)
class AppleDevice:
    """A Mac."""

    profile: AppleProfile
    report_progress: ReportProgress = no_report

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def _ssh(self) -> Ssh:
        return Ssh(host=self.profile.host, seconds=self.profile.command_seconds)

    def probe(self) -> Facts:
        facts, missing = Facts(name=self.name, kind="apple", runtimes=self.runtimes), []
        try:
            facts = replace(
                facts,
                model=self._ssh("sysctl -n machdep.cpu.brand_string").strip(),
                system=f"macOS {self._ssh('sw_vers -productVersion').strip()}",
                abi=self._ssh("uname -m").strip(),
                free_bytes=int(self._ssh("df -k /tmp | tail -1").split()[3]) * 1024,
            )
            self._check_python()
        except (TurboVaedError, ValueError, IndexError) as error:
            missing.append(str(error))
        return replace(facts, missing=tuple(missing))

    @property
    def runtimes(self) -> tuple[str, ...]:
        return RUNTIMES

    def push(self, package: Package) -> Handle:
        require_runs(self, package)
        self.report_progress(0.0, "runner and program to the Mac")
        location = f"{self.profile.folder}/{uuid.uuid4().hex}"
        handle = Handle(package=package, location=location)
        try:
            self._ssh(f"mkdir -p {location}")
            self._ssh.push(str(package.program_path), f"{location}/{package.program}")
            for module in (_apple_runner, timing):
                assert module.__file__ is not None
                self._ssh.push(module.__file__, f"{location}/")
            self._check_python()
        except TurboVaedError:
            self.remove(handle)
            raise
        return handle

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process, as on the host."""
        clips = host.check_latents(latents_npy, handle.package.io.latent_shape)
        location, limit = handle.location, max(1, int(timeout_seconds))
        self._ssh.push(str(latents_npy), f"{location}/latents.npy")
        codes = []
        for i in range(host.REPEATS):
            self.report_progress(0.1 + 0.4 * i, f"process {i + 1} of {host.REPEATS} on the Mac")
            arguments = [
                f"result{i}.json", handle.package.program, "latents.npy", DECODED_NAME,
                json.dumps(asdict(plan)), self.profile.compute_unit, str(limit),
            ]  # fmt: skip
            command = shlex.join([self.profile.python, "_apple_runner.py", *arguments])
            output = self._ssh(
                f"cd {location} && {{ {command} > log 2>&1; echo $?; }}",
                seconds=limit + self.profile.command_seconds,
            )
            codes.append(output.strip())
            if output.strip() != "0":
                break
        machine = (
            f"{self._ssh('sysctl -n machdep.cpu.brand_string').strip()}, macOS "
            f"{self._ssh('sw_vers -productVersion').strip()}, {self.profile.compute_unit}"
        )
        facts = {"codes": codes, "machine": machine}
        return Ran(
            handle=handle,
            plan=plan,
            clips=clips,
            location=location,
            facts=facts,
            is_repeatable=True,
        )

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        package, codes = ran.handle.package, ran.facts["codes"]
        assert isinstance(codes, list)
        common = {
            "device": self.name,
            "machine": str(ran.facts["machine"]),
            "package_sha256": package.sha256,
        }
        self.report_progress(0.9, "frames from the Mac")
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            folder = Path(scratch)
            if codes[-1] != "0":
                return self._failed(ran, folder, common, codes[-1])
            for i in range(len(codes)):
                self._ssh.pull(f"{ran.location}/result{i}.json", str(folder))
            self._ssh.pull(f"{ran.location}/{DECODED_NAME}", str(folder))
            runs = [self._read(folder / f"result{i}.json", ran, common) for i in range(len(codes))]
            host.check_decoded(folder / DECODED_NAME, package, ran.clips)
            out_folder.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / DECODED_NAME, out_folder / DECODED_NAME)
        return host.joined(runs, ran.plan, 1.0)

    def _check_python(self) -> None:
        """Raises UserError where its Python cannot measure: that is no fault of a package."""
        python = shlex.quote(self.profile.python)
        output = self._ssh(f"{{ {python} -c {shlex.quote(_CHECK)} 2>&1; echo $?; }}").strip()
        if output.splitlines()[-1] != "0":
            last = " ".join(output.splitlines()[:-1])[-300:]
            raise UserError(
                f"{self.name}: {self.profile.python} there cannot measure: {last}; it has to be "
                f"Python 3.10 or later, with: {self.profile.python} -m pip install coremltools"
            )

    def remove(self, handle: Handle) -> None:
        with contextlib.suppress(TurboVaedError):  # it is gone, and what follows says so
            self._ssh(f"rm -rf {handle.location}")

    def _failed(self, ran: Ran, folder: Path, common: dict[str, str], code: str) -> Failed:
        if not code.isdigit():
            raise Fault(f"{self.name} left no exit code of the runner, found {code[:200]!r}")
        self._ssh.pull(f"{ran.location}/log", str(folder))
        last = (folder / "log").read_text(errors="replace").strip()[-500:] or "none"
        how = "took too long" if int(code) == _ALARM else f"failed with exit code {code}"
        return Failed(
            **common, runtime="Core ML", reason=f"the runner {how}; its last words: {last}"
        )

    def _read(self, path: Path, ran: Ran, common: dict[str, str]) -> Measurement:
        package, plan = ran.handle.package, ran.plan
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            runtime = f"Core ML (coremltools {found.pop('coremltools')})"
            samples = found.pop("latency_seconds")
            return Measurement.from_json({
                **NOT_REPORTED, **found, **common,
                "runtime": runtime, "seconds_by_process": [samples],
                "threads": plan.threads, "confidence": plan.confidence,
                "frames": package.io.video_shape[2], "clips": ran.clips,
            })  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fault(f"{self.name} sent an invalid report: {error}") from error
