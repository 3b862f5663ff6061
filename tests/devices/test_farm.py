"""A phone of AWS Device Farm, whose service answers on loopback and runs what it is given."""

import time
import zipfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import BytesIO

import numpy as np
import pytest

from tests.devices.fake_farm import DEVICE, PROJECT, Farm
from tests.devices.fake_phone import make_phone
from tests.devices.small import PLAN, SHAPE, STRICT, expected_frames
from turbo_vaed.config.devices import FarmProfile, parse_profile
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.tags import resource_tags
from turbo_vaed.devices import Failed, Measurement, farm
from turbo_vaed.devices.device import measure_on
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.metering.run_stage import usage_charge

pytestmark = pytest.mark.slow


@pytest.fixture
def service(monkeypatch):
    found = Farm()
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    yield found
    found.stop()


@pytest.fixture
def paid():
    return []


@pytest.fixture(scope="module")
def package(android):
    return android


@pytest.fixture
def phone(service, paid, tmp_path, monkeypatch, package):
    runner = make_phone(tmp_path, monkeypatch, SHAPE, package.io.video_shape)
    monkeypatch.setattr(farm, "_PHONE", str(tmp_path / "storage"))
    profile = FarmProfile(
        name="pixel", kind="device-farm", project=PROJECT, device=DEVICE, runner=runner.name,
        wait_minutes=2.0,
    )  # fmt: skip
    return farm.FarmDevice(
        profile=profile, root=tmp_path, charge=paid.append, tags=tags, sleep=lambda _: None
    )


def tags():
    return resource_tags(run="demo-1", customer="demo", stage="gate")


def measured(phone, package, latents, tmp_path, seconds=60.0, plan=PLAN):
    return measure_on(
        phone, package, latents, plan=plan, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def test_a_package_is_measured_paid_for_and_its_frames_come_back(
    phone, service, paid, package, latents, tmp_path
):
    found = measured(phone, package, latents, tmp_path)
    assert isinstance(found, Measurement)
    assert service.tags == tags(), "the bill attributes it to the run"
    assert [len(seconds) for seconds in found.seconds_by_process] == [3, 3]
    assert found.machine == "P1, arm64-v8a, Android 15 (AWS Device Farm)"
    assert (found.temperature_celsius, found.throttled) == (31.2, False)
    decoded = np.load(tmp_path / "out" / "decoded.npy")
    np.testing.assert_array_equal(decoded, expected_frames(package, latents))
    (used,) = paid
    assert (used.quantity, used.unit, used.usd_per_unit) == (
        Decimal("3.25"), "device-minute", Decimal("0.17")
    )  # fmt: skip
    scheduled = service.scheduled
    assert scheduled["deviceSelectionConfiguration"]["filters"][0]["values"] == [DEVICE]
    assert scheduled["executionConfiguration"]["jobTimeoutMinutes"] == 30
    assert all(upload["deleted"] for upload in service.uploads.values())
    assert not (tmp_path / "storage").exists()
    names = zipfile.ZipFile(BytesIO(service.uploads["u0"]["data"])).namelist()
    assert {"requirements.txt", "tests/test_nothing.py", "work/run.sh"} < set(names)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(usage_charge(paid[0], "demo-1", "demo", "gate"))
        (charge,) = ledger.charges(run="demo-1")
    assert charge.amount_usd == Decimal("0.5525") and charge.stage == "gate"
    assert charge.resource == "Device Farm (pixel)"
    assert charge.price_source == "devices.pixel.usd_per_device_minute"


def test_a_probe_reports_the_phone_and_what_is_missing(phone, service, tmp_path):
    facts = phone.probe()
    assert (facts.model, facts.system, facts.abi) == ("Acme P1", "ANDROID 15", "ARM64")
    assert facts.missing == ()
    (tmp_path / "executor_runner").unlink()
    service.trouble = "deny GetProject"
    runner, denied = phone.probe().missing
    assert "executor_runner" in runner and "get_project: AccessDenied" in denied


def test_a_runner_that_crashes_is_a_result_that_was_paid_for(
    phone, paid, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_TROUBLE", "crash")
    found = measured(phone, package, latents, tmp_path)
    assert isinstance(found, Failed) and "exit code" in found.reason
    assert len(paid) == 1


def test_a_slow_runner_is_a_result_and_ends_before_its_job(
    phone, service, paid, package, latents, tmp_path, monkeypatch
):
    """Twelve minutes a process: each has the time that it may take, and all of them have not. The
    second is ended while it runs, as one that hangs would be."""
    monkeypatch.setenv("RUNNER_TROUBLE", "slow")
    monkeypatch.setenv("CLOCK_SPEED", "150")
    monkeypatch.setenv("SLOW_SECONDS", str(12 * 60 / 150))
    service.minute_seconds = 60 / 150  # a job of 30 minutes is one of 12 seconds
    found = measured(phone, package, latents, tmp_path, seconds=1800.0)  # as long as the job
    assert isinstance(found, Failed) and "all runs together" in found.reason
    assert len(paid) == 1 and not paid[0].is_wasted


def test_a_clock_that_is_set_back_loses_no_charge(phone, paid):
    """By an hour, during a run of ten minutes for which AWS reports no minutes."""
    later = datetime.now(UTC) + timedelta(hours=1)
    begun = farm._Begun(at=later, clock=time.monotonic() - 600)
    phone._charge({}, begun, is_wasted=False)
    (used,) = paid
    assert used.quantity == pytest.approx(Decimal(10), abs=Decimal("0.1"))
    assert usage_charge(used, "demo-1", "demo", "gate").started_at == later == used.ended


def test_processes_that_disagree_are_not_repeated_where_minutes_are_paid(
    phone, service, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_TROUBLE", "unsteady")
    found = measured(phone, package, latents, tmp_path, plan=STRICT)
    assert found.processes == 2 and found.latency.spread > STRICT.max_spread
    assert service.calls["ScheduleRun"] == 1


@pytest.mark.parametrize(
    ("trouble", "error", "message", "minutes"),
    [
        ("refuse upload", Fault, r"turbo-vaed\.zip: no tests", 0),
        ("deny ScheduleRun", UserError, r"schedule_run: AccessDenied.*devices\.pixel", 0),
        ("never", Fault, "2 minutes.*was stopped", 1),
        ("no artifact", Fault, "artifact.*PASSED: all green", 1),
        ("garbage", Fault, "no archive", 1),
    ],
)
def test_a_failed_run_is_an_error_and_its_minutes_are_paid(
    phone, service, paid, package, latents, tmp_path, trouble, error, message, minutes
):
    service.trouble = trouble
    with pytest.raises(error, match=message):
        measured(phone, package, latents, tmp_path)
    assert len(paid) == minutes
    assert all(upload["deleted"] for upload in service.uploads.values())
    assert service.calls["StopRun"] == (trouble == "never")


def test_a_phone_lost_half_way_is_a_fault_and_is_paid(
    phone, paid, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("ADB_TROUBLE", "say push adb: error: device offline")
    with pytest.raises(Fault, match=r"pixel: .*runner.*FAILED"):
        measured(phone, package, latents, tmp_path)
    assert len(paid) == 1


def test_a_run_that_is_interrupted_stops_its_phone(
    phone, service, paid, package, latents, tmp_path
):
    def interrupt(_seconds):
        if service.scheduled:
            raise KeyboardInterrupt

    service.trouble = "never"
    impatient = farm.FarmDevice(
        profile=phone.profile, root=phone.root, charge=paid.append, sleep=interrupt
    )
    with pytest.raises(KeyboardInterrupt):
        measured(impatient, package, latents, tmp_path)
    assert service.calls["StopRun"] == 1


def test_missing_aws_credentials_are_a_users_mistake(
    phone, monkeypatch, package, latents, tmp_path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which remembers them
    with pytest.raises(UserError, match="aws configure"):
        measured(phone, package, latents, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": "p1"}, r"devices\.x\.project: found 'p1'"),
        ({"usd_per_device_minute": -1}, r"devices\.x\.usd_per_device_minute: found -1"),
        ({"job_minutes": 1000}, r"devices\.x\.job_minutes: found 1000"),
    ],
)
def test_an_invalid_profile_is_refused_with_the_path_of_its_key(change, message):
    given = {"name": "x", "kind": "device-farm", "project": PROJECT, "device": DEVICE}
    with pytest.raises(UserError, match=message):
        parse_profile({**given, "runner": "r", **change})


def test_a_call_that_is_throttled_is_tried_again_and_a_run_without_tags_is_still_measured(
    phone, service, package, latents, tmp_path, caplog
):
    service.trouble = "throttle ScheduleRun, deny TagResource"
    assert isinstance(measured(phone, package, latents, tmp_path), Measurement)
    assert service.calls["ScheduleRun"] == 2
    assert "tags" in caplog.text
