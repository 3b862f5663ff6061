"""An Android phone of AWS Device Farm: what `adb` does on a cable, done by a test of theirs.

A test package of files, script and test specification is uploaded, a run is scheduled on one
phone, and what the phone left comes back as the run's customer artifacts. The test is of the kind
that needs no app (`APPIUM_WEB_PYTHON`), in a custom environment, where the commands are ours:
https://docs.aws.amazon.com/devicefarm/latest/developerguide/custom-test-environments.html
Device Farm lives in us-west-2 alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import requests

from turbo_vaed.config.devices import FarmProfile
from turbo_vaed.costs.run_context import Usage
from turbo_vaed.devices import _android
from turbo_vaed.devices.device import Facts, Handle, Ran, ReportProgress, no_report, require_runs
from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import Plan
from turbo_vaed.errors import Fault, TurboVaedError, UserError
from turbo_vaed.export.package import Package

REGION = "us-west-2"
TEST = "APPIUM_WEB_PYTHON"
UNIT = "device-minute"
LEFT = "turbo-vaed"
"""Folder of what the phone left, within the artifacts."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 5.0, 60.0
_TRANSFER_SECONDS = 600.0
_SHARE_OF_RUNS = 2 / 3
"""Of a job's minutes, for all runs of the program."""
_PHONE = "/data/local/tmp/turbo-vaed"
_SPECIFICATION = """\
version: 0.1
phases:
  test:
    commands:
      - sh "$DEVICEFARM_TEST_PACKAGE_PATH/measure.sh"
artifacts:
  - $DEVICEFARM_LOG_DIR
"""
_MEASURE = """\
set -e
cd "$(dirname "$0")/work"
left="$DEVICEFARM_LOG_DIR/{left}"
mkdir -p "$left"
phone() {{ adb -s "$DEVICEFARM_DEVICE_UDID" "$@"; }}
phone shell "rm -rf {location}; mkdir -p {location}"
for file in *; do phone push "$file" "{location}/$file"; done
phone shell "chmod 755 {location}/{runner}; sh {location}/{script}"
phone shell "getprop ro.product.model" > "$left/model"
phone shell "getprop ro.product.cpu.abi" > "$left/abi"
phone shell "getprop ro.build.version.release" > "$left/android"
for file in *; do phone shell "rm -f {location}/$file"; done
phone pull "{location}/." "$left"
phone shell "rm -rf {location}"
"""
# Device Farm refuses a package of Python tests without these two.
_NO_TEST = "def test_nothing():\n    pass\n"
_NO_REQUIREMENTS = "# none\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """When a run was scheduled."""

    at: datetime
    clock: float
    """Of `time.monotonic`, which nobody sets."""


@dataclass(frozen=True, kw_only=True)
class FarmDevice:
    """A phone; `root` is what a relative path of its profile is below."""

    profile: FarmProfile
    root: Path = Path()
    charge: Callable[[Usage], None] | None = None
    """Called with the minutes that AWS counts, also for runs that failed."""
    tags: Callable[[], Mapping[str, str]] | None = None
    """Tags of its runs, by which the bill distinguishes them."""
    sleep: Callable[[float], None] = time.sleep
    report_progress: ReportProgress = no_report

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def _runner(self) -> Path:
        return self.root / self.profile.runner

    def probe(self) -> Facts:
        facts, missing = Facts(name=self.name, kind="device-farm", runtimes=self.runtimes), []
        if not self._runner.is_file():
            missing.append(f"{self._runner}: {_android.HOW_TO_GET_THE_RUNNER}")
        try:
            self._ask("get_project", arn=self.profile.project)
            phone = self._ask("get_device", arn=self.profile.device)["device"]
            facts = replace(
                facts,
                model=f"{phone.get('manufacturer', '')} {phone.get('model', '')}".strip(),
                system=f"{phone.get('platform', '')} {phone.get('os', '')}".strip(),
                abi=(phone.get("cpu") or {}).get("architecture"),
            )
            if phone.get("availability") in ("BUSY", "TEMPORARY_NOT_AVAILABLE"):
                missing.append(f"no such phone is free now ({phone['availability']}): a run waits")
        except TurboVaedError as error:
            missing.append(str(error))
        return replace(facts, missing=tuple(missing))

    @property
    def runtimes(self) -> tuple[str, ...]:
        return _android.RUNTIMES

    def push(self, package: Package) -> Handle:
        """Nothing is uploaded yet: Device Farm takes a test whole, with its inputs."""
        require_runs(self, package)
        _android.check_runner(self._runner, self.name)
        self._ask("get_project", arn=self.profile.project)
        return Handle(package=package, location=tempfile.mkdtemp(prefix="turbo-vaed-"))

    def run(self, handle: Handle, latents_npy: Path, plan: Plan, *, timeout_seconds: float) -> Ran:
        """`timeout_seconds` is of each process; the whole has the profile's `job_minutes`."""
        # The rest is for the phone's start and for what the script leaves, or Device Farm would
        # stop the job, and a program that is slow would look like a phone that was lost.
        whole_seconds = self.profile.job_minutes * 60 * _SHARE_OF_RUNS
        location = Path(handle.location)
        work = location / "work"
        work.mkdir()
        shutil.copy(self._runner, work / _android.RUNNER)
        shutil.copy(handle.package.program_path, work / handle.package.program)
        clips = _android.write_inputs(
            handle.package,
            latents_npy,
            plan,
            work,
            timeout_seconds=timeout_seconds,
            whole_seconds=whole_seconds,
        )
        self.report_progress(0.0, "files to Device Farm")
        uploads: list[str] = []
        try:
            package = self._upload("turbo-vaed.zip", f"{TEST}_TEST_PACKAGE", _zip(work), uploads)
            text = _SPECIFICATION.encode()
            specification = self._upload("turbo-vaed.yml", f"{TEST}_TEST_SPEC", text, uploads)
            self._measure(handle, package, specification)
        finally:
            for arn in uploads:
                with contextlib.suppress(TurboVaedError):  # they cost nothing
                    self._ask("delete_upload", arn=arn)
        return Ran(handle=handle, plan=plan, clips=clips, location=str(location / LEFT))

    def collect(self, ran: Ran, out_folder: Path) -> Measurement | Failed:
        left = Path(ran.location)
        phone = _android.Phone(
            name=self.name,
            machine=f"{_read_fact(left, 'model')}, {_read_fact(left, 'abi')}, Android "
            f"{_read_fact(left, 'android')} (AWS Device Farm)",
        )
        return _android.read_outputs(
            left, phone, ran.handle.package, ran.plan, ran.clips, out_folder
        )

    def remove(self, handle: Handle) -> None:
        shutil.rmtree(handle.location, ignore_errors=True)

    def _upload(self, name: str, kind: str, data: bytes, uploads: list[str]) -> str:
        """Upload a file, and wait until Device Farm has looked at it; its ARN."""
        made = self._ask("create_upload", projectArn=self.profile.project, name=name, type=kind)
        arn: str = made["upload"]["arn"]
        uploads.append(arn)
        _transfer("PUT", made["upload"]["url"], data)

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self._ask("get_upload", arn=arn)["upload"]
            return found if found["status"] in ("SUCCEEDED", "FAILED") else None

        found = self._wait(look, _TRANSFER_SECONDS)
        if found is None:
            raise Fault(f"Device Farm has not looked at {name} after {_TRANSFER_SECONDS:.0f} s")
        if found["status"] == "FAILED":
            reason = found.get("message") or found.get("metadata") or "no reason"
            raise Fault(f"Device Farm refuses {name}: {reason}")
        return arn

    def _measure(self, handle: Handle, package: str, specification: str) -> None:
        """Have a phone run the test; what it left lies at the handle's location then."""
        began = _Begun(at=datetime.now(UTC), clock=time.monotonic())
        run = self._ask(
            "schedule_run",
            projectArn=self.profile.project,
            name=f"turbo-vaed {handle.package.target}",
            deviceSelectionConfiguration={
                "filters": [
                    {"attribute": "ARN", "operator": "IN", "values": [self.profile.device]}
                ],
                "maxDevices": 1,
            },
            test={"type": TEST, "testPackageArn": package, "testSpecArn": specification},
            executionConfiguration={
                "jobTimeoutMinutes": self.profile.job_minutes, "videoCapture": False,
            },
        )["run"]  # fmt: skip
        arn = run["arn"]
        self._tag(arn)

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self._ask("get_run", arn=arn)["run"]
            self.report_progress(0.1, f"Device Farm's run is {str(found['status']).lower()}")
            return found if found["status"] == "COMPLETED" else None

        try:
            found = self._wait(look, self.profile.wait_minutes * 60)
        except BaseException as error:  # this process is stopped, say: the phone must not go on
            error.add_note(self._stop(arn, began))
            raise
        if found is None:
            raise Fault(
                f"{self.name}: no end after {self.profile.wait_minutes:g} minutes of waiting; is a "
                f"phone of this model free (devices probe)? {self._stop(arn, began)}"
            )
        try:
            if found.get("result") == "STOPPED":
                raise Fault(f"{self.name}: the run was stopped in Device Farm, by somebody")
            self._fetch(arn, found, Path(handle.location) / LEFT)
        except BaseException:
            self._charge(found, began, is_wasted=True)
            raise
        self._charge(found, began, is_wasted=False)

    def _tag(self, arn: str) -> None:
        """A run that cannot be tagged is measured and charged all the same."""
        if self.tags is None:
            return
        tags = [{"Key": key, "Value": value} for key, value in self.tags().items()]
        try:
            self._ask("tag_resource", ResourceARN=arn, Tags=tags)
        except TurboVaedError as error:
            _log.warning("the bill will not show %s by its tags: %s", arn, error)

    def _stop(self, arn: str, began: _Begun) -> str:
        """Stop a run and charge what it used until now; returns the outcome as a sentence."""
        try:
            self._ask("stop_run", arn=arn)
            found = self._ask("get_run", arn=arn)["run"]
        except TurboVaedError as error:
            self._charge({}, began, is_wasted=True)
            return f"It could NOT be stopped ({error}): look after {arn}."
        self._charge(found, began, is_wasted=True)
        return "It was stopped."

    def _fetch(self, arn: str, run: dict[str, Any], target: Path) -> None:
        self.report_progress(0.9, "frames from Device Farm")
        artifacts = self._ask("list_artifacts", arn=arn, type="FILE")["artifacts"]
        urls = [found["url"] for found in artifacts if found["type"] == "CUSTOMER_ARTIFACT"]
        result = f"{run.get('result')}: {run.get('message') or 'no message'}"
        if not urls:
            raise Fault(
                f"{self.name}: the run left no customer artifact; Device Farm says {result}"
            )
        try:
            with zipfile.ZipFile(io.BytesIO(_transfer("GET", urls[0]))) as archive:
                names = [n for n in archive.namelist() if f"{LEFT}/" in n and not n.endswith("/")]
                target.mkdir()
                for name in names:
                    (target / Path(name).name).write_bytes(archive.read(name))
        except zipfile.BadZipFile as error:
            raise Fault(f"{self.name}: the artifacts are no archive ({error})") from error
        if not (target / "code").is_file():
            raise Fault(
                f"{self.name}: the phone did not reach the runner; Device Farm says {result}"
            )

    def _charge(self, run: dict[str, Any], began: _Begun, *, is_wasted: bool) -> None:
        """Charge the minutes that AWS counts; where it reports none of a run that is not
        over, all the time since it was scheduled, as far as a job may last."""
        ended = max(began.at, datetime.now(UTC))  # the clock may have been set back
        source = f"devices.{self.name}.usd_per_device_minute"
        counted = (run.get("deviceMinutes") or {}).get("metered")
        if counted is not None and (counted or run.get("status") == "COMPLETED"):
            minutes = Decimal(str(counted))
        else:
            since = Decimal(int(time.monotonic() - began.clock)) / 60
            minutes = min(since, Decimal(self.profile.job_minutes)).quantize(Decimal("0.01"))
            source += "; the minutes are those of the clock, AWS has reported none"
        if self.charge is not None and minutes > 0:
            self.charge(
                Usage(
                    resource=f"Device Farm ({self.name})",
                    unit=UNIT,
                    quantity=minutes,
                    usd_per_unit=self.profile.usd_per_device_minute,
                    began=began.at,
                    ended=ended,
                    source=source,
                    is_wasted=is_wasted,
                )
            )

    def _wait(self, look: Callable[[], dict[str, Any] | None], seconds: float) -> Any:
        """What `look` finds within so many seconds, with ever longer pauses; None if nothing."""
        pause, waited = FIRST_WAIT_SECONDS, 0.0
        while (found := look()) is None and waited < seconds:
            self.sleep(pause)
            waited += pause
            pause = min(pause * 1.5, MOST_WAIT_SECONDS)
        return found

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """Call Device Farm.

        Raises:
            UserError: no credentials, no permission, or a wrong ARN.
            Fault: AWS does not answer, or refuses for another reason.
        """
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            client = boto3.client("devicefarm", region_name=REGION)
            return getattr(client, operation)(**arguments)
        except NoCredentialsError as error:
            raise UserError(f"AWS Device Farm: {error}; aws configure") from None
        except ClientError as error:
            answer = error.response["Error"]
            text = f"AWS Device Farm, {operation}: {answer.get('Code')}: {answer.get('Message')}"
            if answer.get("Code") in _A_PERSONS:
                raise UserError(
                    f"{text}; look at project and device of devices.{self.name} in devices.yaml, "
                    "and at what your AWS role may do (devicefarm:*)"
                ) from None
            raise Fault(text) from error
        except BotoCoreError as error:
            raise Fault(f"AWS Device Farm, {operation}: {error}") from error


_A_PERSONS = (
    "AccessDeniedException",
    "ArgumentException",
    "InvalidSignatureException",
    "NotFoundException",
    "UnrecognizedClientException",
    "ExpiredTokenException",
)


def _zip(work: Path) -> bytes:
    """The test package: what is for the phone below `work/`, and what Device Farm wants to see."""
    measure = _MEASURE.format(
        left=LEFT, location=_PHONE, runner=_android.RUNNER, script=_android.SCRIPT
    )
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("measure.sh", measure)
        archive.writestr("requirements.txt", _NO_REQUIREMENTS)
        archive.writestr("tests/test_nothing.py", _NO_TEST)
        for file in sorted(work.iterdir()):
            archive.write(file, f"work/{file.name}")
    return written.getvalue()


def _transfer(method: str, url: str, data: bytes | None = None) -> bytes:
    """To or from one of Device Farm's own addresses in S3."""
    try:
        answer = requests.request(method, url, data=data, timeout=_TRANSFER_SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        where = url.partition("?")[0]  # what follows is a signature
        raise Fault(f"Device Farm, {method} {where}: {type(error).__name__}") from None
    return answer.content


def _read_fact(folder: Path, name: str) -> str:
    path = folder / name
    return path.read_text(errors="replace").strip() if path.is_file() else "unknown"
