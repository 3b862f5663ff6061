"""An iPhone attached to a Mac that `ssh` reaches: `xcrun devicectl` brings a job to an app of its
own on the phone, starts it and fetches what it left. docs/on-device.md says what the app has to do.

devicectl comes with Xcode 15; its `--console`, which waits for the app's end, with Xcode 16.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turbo_vaed.config.devices import AppleProfile
from turbo_vaed.devices import host
from turbo_vaed.devices._ssh import KnownFailures, Ssh
from turbo_vaed.devices.device import (
    RAW_DTYPES,
    Facts,
    Handle,
    Ran,
    ReportProgress,
    no_report,
    require_runs,
)
from turbo_vaed.devices.measurement import DECODED_NAME, NOT_REPORTED, Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export.package import Package

FORMAT = 2
"""Of job.json; an app refuses another."""
JOB, RESULTS = "Documents/turbo-vaed", "Documents/turbo-vaed-results"
"""In the app's container. It cannot write where devicectl did, hence a folder of its own."""
DECODED = "decoded.bin"
_KNOWN_FAILURES: KnownFailures = (
    ("could not be, unlocked", UserError, "unlock the iPhone, and set Auto-Lock to never"),
    ("Developer Mode", UserError, "switch it on: Settings, Privacy & Security, Developer Mode"),
    ("unable to find utility", UserError, "install Xcode 16 there, and xcode-select -s it"),
    ("No space left", UserError, "free some space on the Mac and on the iPhone"),
    ("device was not found", Fault, "connect and unlock it; xcrun devicectl list devices"),
    ("was lost", Fault, "it was unplugged: plug it in and start again"),
)


@dataclass(frozen=True, kw_only=True)
class IphoneDevice:
    """An iPhone; its profile has `iphone` and `app`."""

    profile: AppleProfile
    report_progress: ReportProgress = no_report

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def _ssh(self) -> Ssh:
        seconds = self.profile.command_seconds
        return Ssh(host=self.profile.host, seconds=seconds, known_failures=_KNOWN_FAILURES)

    def probe(self) -> Facts:
        facts = Facts(
            name=self.name, kind="apple", runtimes=self.runtimes,
            chosen=f"iphone {self.profile.iphone} of the profile, on {self.profile.host}",
        )  # fmt: skip
        try:
            found = self._info("details")
            hardware, device = found["hardwareProperties"], found["deviceProperties"]
            facts = replace(
                facts,
                model=f"{hardware['marketingName']} ({hardware['productType']})",
                system=f"iOS {device['osVersionNumber']}",
            )
            if not self._info("apps", "--bundle-id", str(self.profile.app))["apps"]:
                raise UserError(
                    f"{self.profile.app} is not on it: build the app of docs/on-device.md, and "
                    f"xcrun devicectl device install app --device {self.profile.iphone} APP"
                )
        except (TurboVaedError, ValueError, KeyError, TypeError) as error:
            is_ours = isinstance(error, TurboVaedError)
            problem = str(error) if is_ours else f"devicectl answered something else: {error!r}"
            facts = replace(facts, missing=(problem,))
        return facts

    @property
    def runtimes(self) -> tuple[str, ...]:
        return self.profile.app_runs

    def push(self, package: Package) -> Handle:
        """To the Mac; devicectl takes a job whole, with its inputs."""
        require_runs(self, package)
        self.report_progress(0.0, "program to the Mac")
        location = f"{self.profile.folder}/{uuid.uuid4().hex}"
        handle = Handle(package=package, location=location)
        try:
            self._ssh(f"mkdir -p {location}/job {location}/none && touch {location}/none/empty")
            self._ssh.push(str(package.program_path), f"{location}/job/{package.program}")
        except TurboVaedError:
            self.remove(handle)
            raise
        return handle

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process, as on the host."""
        location, limit = handle.location, max(1, int(timeout_seconds))
        clips = host.check_latents(latents_npy, handle.package.io.latent_shape)
        name = uuid.uuid4().hex
        job = {"job": name, **self._job(handle.package, plan, clips, limit)}
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            _write_job(job, latents_npy, Path(scratch))
            self._ssh(f"rm -f {location}/result* {location}/{DECODED}")  # of a round before
            for file in sorted(Path(scratch).iterdir()):
                self._ssh.push(str(file), f"{location}/job/{file.name}")
        self.report_progress(0.1, "job to the iPhone")
        self._copy_to(f"{location}/job")
        for i in range(host.REPEATS):
            self.report_progress(0.2 + 0.3 * i, f"process {i + 1} of {host.REPEATS} on the iPhone")
            self._launch(location, i, limit)
            if self._fetch(location, i, name)["state"] != "done":
                break
        return Ran(handle=handle, plan=plan, clips=clips, location=location, is_repeatable=True)

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        self.report_progress(0.8, "frames from the iPhone")
        runs, location = [], ran.location
        for i in range(host.REPEATS):
            found = json.loads(self._ssh(f"cat {location}/result{i}.json"))
            common = {
                "device": self.name, "package_sha256": ran.handle.package.sha256,
                "machine": str(found.get("machine") or "an iPhone that did not say which"),
                "runtime": str(found.get("runtime") or ran.handle.package.runtime),
            }  # fmt: skip
            if found["state"] != "done":
                log = self._ssh(f"cat {location}/log{i}").strip()[-500:] or "none"
                why = found.get("reason") or "it ended before it was done"
                return Failed(**common, reason=f"the app: {why}; last words on its console: {log}")
            runs.append(self._measurement(found, ran, common))
        with tempfile.TemporaryDirectory(prefix="turbo-vaed-") as scratch:
            self._copy_from(DECODED, f"{location}/{DECODED}")
            self._ssh.pull(f"{location}/{DECODED}", scratch)
            _decoded(Path(scratch) / DECODED, ran, out_folder)
        return host.joined(runs, ran.plan, 1.0)

    def remove(self, handle: Handle) -> None:
        """From the Mac; and from the phone, where only what replaces a folder removes it."""
        with contextlib.suppress(TurboVaedError):  # it is gone, and what follows says so
            self._copy_to(f"{handle.location}/none")
        with contextlib.suppress(TurboVaedError):
            self._ssh(f"rm -rf {handle.location}")

    def _job(self, package: Package, plan: Plan, clips: int, seconds: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "program": package.program,
            "runtime": package.runtime,
            "compute_unit": self.profile.compute_unit,
            "threads": plan.threads,
            "latents": "latents.bin",
            "clips": clips,
            "latent_shape": list(package.io.latent_shape),
            "latent_dtype": package.io.latent_dtype,
            "video_shape": list(package.io.video_shape),
            "video_dtype": package.io.video_dtype,
            "warmup": plan.max_warmup,
            "samples": plan.max_samples,
            "seconds": seconds,
        }

    def _launch(self, location: str, i: int, limit: int) -> None:
        """Start the app and wait for its end; its console is log{i}. Its result is in what it left:
        devicectl's exit code is not documented."""
        variables = {"TURBO_VAED_JOB": f"{JOB}/job.json", "TURBO_VAED_RESULT": f"result{i}.json"}
        command = self._devicectl(
            "process", "launch", "--console", "--terminate-existing",
            "--environment-variables", json.dumps(variables), str(self.profile.app),
        )  # fmt: skip
        seconds = limit + self.profile.command_seconds
        self._ssh(f"{command} > {location}/log{i} 2>&1; true", seconds=seconds)

    def _fetch(self, location: str, i: int, job: str) -> dict[str, Any]:
        """What a process of the app left.

        Raises:
            UserError, Fault: nothing of this job, for it was not started, or the phone is gone.
        """
        try:
            self._copy_from(f"result{i}.json", f"{location}/result{i}.json")
            return _of_job(json.loads(self._ssh(f"cat {location}/result{i}.json")), job)
        except UserError:
            raise
        except (Fault, ValueError) as error:  # its console may know better why
            log = self._ssh(f"tail -c 500 {location}/log{i}").strip() or "nothing"
            problem = (
                f"{self.name}: the app left no result of this job: {error}; "
                f"its start printed: {log}"
            )
            for text, kind, advice in _KNOWN_FAILURES:
                if text in log:
                    raise kind(f"{problem}; {advice}") from error
            raise Fault(
                f"{problem}; is {self.profile.app} the app of docs/on-device.md?"
            ) from error

    def _measurement(self, found: dict[str, Any], ran: Ran, common: dict[str, str]) -> Measurement:
        plan, io = ran.plan, ran.handle.package.io
        try:
            return Measurement.from_json({
                **NOT_REPORTED, **found, **common, "seconds_by_process": [found["latency_seconds"]],
                "threads": plan.threads, "confidence": plan.confidence, "clips": ran.clips,
                "frames": io.video_shape[2],
            })  # fmt: skip
        except (ValueError, KeyError) as error:
            raise Fault(f"{self.name} sent an invalid report: {error}") from error

    def _devicectl(self, verb: str, what: str, *arguments: str) -> str:
        """A line for the Mac's shell."""
        device = ("--device", str(self.profile.iphone))
        return shlex.join(["xcrun", "devicectl", "device", verb, what, *device, *arguments])

    def _info(self, what: str, *arguments: str) -> dict[str, Any]:
        command = self._devicectl("info", what, *arguments, "--json-output")
        output = self._ssh(f'f=$(mktemp) && {command} "$f" >&2 && cat "$f" && rm -f "$f"')
        found: dict[str, Any] = json.loads(output)["result"]
        return found

    @property
    def _domain(self) -> tuple[str, ...]:
        return ("--domain-type", "appDataContainer", "--domain-identifier", str(self.profile.app))

    def _copy_to(self, folder: str) -> None:
        """Have a folder of the Mac take the place of the job's."""
        self._ssh(self._devicectl(
            "copy", "to", *self._domain, "--source", folder, "--destination", JOB,
            "--remove-existing-content", "true",
        ))  # fmt: skip

    def _copy_from(self, name: str, target: str) -> None:
        """A file of the results to the Mac."""
        source = f"{RESULTS}/{name}"
        self._ssh(self._devicectl(
            "copy", "from", *self._domain, "--source", source, "--destination", target,
        ))  # fmt: skip


def _write_job(job: dict[str, Any], latents_npy: Path, folder: Path) -> None:
    import numpy as np

    latents = np.load(latents_npy, mmap_mode="r")
    data = latents.astype(RAW_DTYPES[job["latent_dtype"]], copy=False).tobytes()
    (folder / "latents.bin").write_bytes(data)
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _of_job(found: object, job: str) -> dict[str, Any]:
    """A result. Raises Fault where it is none of this job: an earlier one's, say."""
    if not isinstance(found, dict) or found.get("job") != job:
        raise Fault(f"found {str(found)[:200]}, expected a mapping with the job {job!r}")
    if found.get("state") not in ("began", "failed", "done"):
        raise Fault(f"state: found {found.get('state')!r}, expected began, failed or done")
    return found


def _decoded(made: Path, ran: Ran, out_folder: Path) -> None:
    """The app's raw frames as .npy of float32. Raises Fault where they are not what the package
    promises."""
    import numpy as np

    io = ran.handle.package.io
    shape, dtype = (ran.clips, *io.video_shape[1:]), np.dtype(RAW_DTYPES[io.video_dtype])
    size, expected = made.stat().st_size, dtype.itemsize * int(np.prod(shape))
    if size != expected:
        raise Fault(f"the app put out {size} bytes for {ran.clips} clips, expected {expected}")
    out_folder.mkdir(parents=True, exist_ok=True)
    frames = np.memmap(made, dtype=dtype, mode="r", shape=shape)
    np.save(out_folder / DECODED_NAME, frames.astype(np.float32, copy=False))
