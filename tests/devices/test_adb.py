"""An Android phone behind a fake `adb`, whose shell is this machine's: phone, cable and runner are
not real, and they misbehave (tests/devices/test_host.py runs programs in the real ExecuTorch)."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.devices.fake_phone import SERIAL, make_phone
from tests.devices.small import PLAN, SHAPE, STRICT, expected_frames
from turbo_vaed.config.devices import AdbProfile, parse_profile
from turbo_vaed.devices import Failed, Measurement, _scratch
from turbo_vaed.devices.device import measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import Fault, UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(android):
    return android


@pytest.fixture
def phone(tmp_path, monkeypatch, package):
    """A phone with a runner; its storage is a folder."""
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    runner = make_phone(tmp_path, monkeypatch, SHAPE, package.io.video_shape)
    storage = tmp_path / "storage"
    profile = AdbProfile(
        name="phone", kind="adb", serial=SERIAL, runner=str(runner), folder=str(storage),
        command_seconds=60,
    )  # fmt: skip
    return open_device(profile, tmp_path), storage


def measured(phone, package, latents, tmp_path, seconds=60.0, plan=PLAN):
    return measure_on(
        phone[0], package, latents, plan=plan, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def left(storage: Path) -> list[Path]:
    return list(storage.iterdir()) if storage.is_dir() else []


def test_a_package_is_measured_and_its_frames_come_back(phone, package, latents, tmp_path):
    found = measured(phone, package, latents, tmp_path)
    assert isinstance(found, Measurement)
    assert [len(seconds) for seconds in found.seconds_by_process] == [3, 3]
    assert found.cold_start_seconds > 0.0125 and found.peak_memory_bytes > 1e6
    assert (found.temperature_celsius, found.throttled, found.clips) == (31.2, False, 2)
    assert found.machine == "P1, arm64-v8a, Android 15"
    decoded = np.load(tmp_path / "out" / "decoded.npy")
    np.testing.assert_array_equal(decoded, expected_frames(package, latents))
    assert left(phone[1]) == []


def test_processes_that_disagree_are_repeated_once_and_the_last_ones_count(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_TROUBLE", "unsteady")
    monkeypatch.setenv("DEGREES", "50 30")  # hot at the very first look alone
    found = measured(phone, package, latents, tmp_path, plan=STRICT)
    assert found.seconds_by_process == ((0.01,) * 3,) * 2
    assert (found.processes, found.hottest_celsius) == (4, 30)
    assert left(phone[1]) == []


def test_processes_that_agree_are_not_run_again(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_TROUBLE", "unsteady")
    assert measured(phone, package, latents, tmp_path).processes == 2


def test_a_hot_phone_is_reported(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("HOT", "2")
    found = measured(phone, package, latents, tmp_path)
    assert found.throttled and "heat" in found.unreliable_reason


def test_heat_is_read_before_between_and_after_the_samples(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("DEGREES", "30.5 41.5 38")
    found = measured(phone, package, latents, tmp_path)
    assert (found.coolest_celsius, found.hottest_celsius) == (30.5, 41.5)
    assert (found.temperature_celsius, found.throttled) == (38, False)


def test_heat_is_read_while_a_program_runs(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_TROUBLE", "slow to time")
    monkeypatch.setenv("SLOW_SECONDS", "1.2")
    monkeypatch.setenv("CLOCK_SPEED", "10")  # a look every half second
    monkeypatch.setenv("DEGREES", "30 50 30")  # the second look is within the first process
    found = measured(phone, package, latents, tmp_path, seconds=600.0)
    assert found.hottest_celsius == 50
    assert int((tmp_path / "commands" / "dumpsys.count").read_text()) >= 5


def test_peak_memory_is_what_the_kernel_counted_until_the_end(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_TROUBLE", "grow")
    assert measured(phone, package, latents, tmp_path).peak_memory_bytes > 400e6


def test_peak_memory_is_sampled_where_toybox_does_not_count_it(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_TROUBLE", "linger")
    (tmp_path / "commands" / "toybox").unlink()
    assert measured(phone, package, latents, tmp_path).peak_memory_bytes > 20e6


@pytest.fixture(scope="session")
def dead_pid():
    dead = subprocess.Popen(["true"])
    dead.wait()
    return dead.pid


def test_what_an_unplugged_phone_still_holds_is_removed_by_the_next_run(
    phone, package, latents, tmp_path, monkeypatch, dead_pid
):
    with monkeypatch.context() as lost:
        lost.setattr(_scratch.os, "getpid", lambda: dead_pid)  # by a process that has ended since
        lost.setenv("RUNNER_TROUBLE", "hang")
        lost.setenv("ADB_TROUBLE", "unplug")
        with pytest.raises(Fault, match="unplugged"):
            measured(phone, package, latents, tmp_path)
    (folder,) = left(phone[1])
    assert folder.name.startswith(_scratch.PREFIX) and (folder / "executor_runner").exists()
    (tmp_path / "commands" / "unplugged").unlink()
    assert isinstance(measured(phone, package, latents, tmp_path), Measurement)
    assert left(phone[1]) == []


def test_folders_in_use_are_not_removed(phone, package, latents, tmp_path, dead_pid):
    ours, pid = _scratch.new_name().rsplit("-", 2)[0], dead_pid
    names = {
        "of a live process": f"{ours}-{os.getpid()}-{'0' * 12}",
        "of a dead one, in use on the phone": f"{ours}-{pid}-{'1' * 12}",
        "of a dead one": f"{ours}-{pid}-{'2' * 12}",
        "of another machine": f"turbo-vaed-00000000-{pid}-{'3' * 12}",
        "of another machine, old": f"turbo-vaed-00000000-{pid}-{'4' * 12}",
        "somebody's": "turbo-vaed-results",
    }
    for name in names.values():
        (phone[1] / name).mkdir(parents=True)
    long_ago = time.time() - 25 * 3600
    for name in ("of another machine, old", "somebody's"):
        os.utime(phone[1] / names[name], (long_ago, long_ago))
    working = subprocess.Popen(
        ["sleep", "600"], cwd=phone[1] / names["of a dead one, in use on the phone"]
    )
    try:
        measured(phone, package, latents, tmp_path)
    finally:
        working.kill()
        working.wait()
    gone = {"of a dead one", "of another machine, old"}
    assert {p.name for p in left(phone[1])} == {names[name] for name in set(names) - gone}


def profile_of(phone, serial):
    profile = phone[0].profile
    return AdbProfile(name="phone", kind="adb", serial=serial, runner=profile.runner,
                      folder=profile.folder, command_seconds=60)  # fmt: skip


def test_a_phone_chosen_by_the_environment_is_named(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    device = open_device(profile_of(phone, None), tmp_path)
    assert f"ANDROID_SERIAL={SERIAL}" in device.probe().chosen
    found = measured((device, phone[1]), package, latents, tmp_path)
    assert found.machine == "P1, arm64-v8a, Android 15 (ANDROID_SERIAL=R5C)"
    monkeypatch.setenv("ANDROID_SERIAL", "XYZ")  # adb is called for that phone
    assert "'XYZ'" in device.probe().missing[0]
    monkeypatch.delenv("ANDROID_SERIAL")
    chosen = device.probe().chosen
    assert "only" in chosen and "ANDROID_SERIAL" not in chosen and SERIAL not in chosen


def test_an_environment_that_names_another_phone_is_refused(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("ANDROID_SERIAL", "XYZ")
    with pytest.raises(
        UserError, match=r"ANDROID_SERIAL.*XYZ.*devices\.phone\.serial.*R5C.*unset ANDROID_SERIAL"
    ) as refusal:
        measured(phone, package, latents, tmp_path)
    assert phone[0].probe().missing == (str(refusal.value),)
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    chosen = phone[0].probe().chosen
    assert SERIAL in chosen and "ANDROID_SERIAL" not in chosen


def test_a_probe_reports_the_phone_and_what_is_missing(phone, tmp_path):
    facts = phone[0].probe()
    assert facts.free_bytes == 600 * 1024
    assert (facts.model, facts.system, facts.abi) == ("Acme P1", "Android 15", "arm64-v8a")
    (tmp_path / "executor_runner").unlink()
    assert "build executor_runner" in phone[0].probe().missing[0]


@pytest.mark.parametrize(
    ("trouble", "seconds", "message"),
    [("crash", 60.0, "exit code"), ("hang", 1.0, "too long")],
)
def test_a_runner_that_crashes_or_hangs_is_a_result(
    phone, package, latents, tmp_path, monkeypatch, trouble, seconds, message
):
    monkeypatch.setenv("RUNNER_TROUBLE", trouble)
    found = measured(phone, package, latents, tmp_path, seconds)
    assert isinstance(found, Failed) and message in found.reason
    assert left(phone[1]) == []


def test_invalid_output_of_the_runner_is_a_fault(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_TROUBLE", "garbage")
    with pytest.raises(Fault, match=r"hello|0 bytes.* clip 0"):
        measured(phone, package, latents, tmp_path)
    assert left(phone[1]) == []


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("say push adb: error: failed to copy: No space left on device", UserError, "No space"),
        ("say shell error: device unauthorized.", UserError, "USB debugging"),
        ("say shell error: device offline", Fault, "adb reconnect"),
        ("say shell error: more than one device/emulator", UserError, r"serial.*devices\.yaml"),
        ("say pull error: device disconnected", Fault, "unplugged"),
        ("say pull strange", Fault, "exit code 1: strange"),
    ],
)
def test_an_error_of_adb_is_raised_with_its_remedy(
    phone, package, latents, tmp_path, monkeypatch, trouble, error, message
):
    monkeypatch.setenv("ADB_TROUBLE", trouble)
    with pytest.raises(error, match=message):
        measured(phone, package, latents, tmp_path)
    assert not (tmp_path / "out" / "decoded.npy").exists()


def test_a_phone_with_another_serial_is_not_used(phone, package, latents, tmp_path):
    other = AdbProfile(
        name="other", kind="adb", serial="XYZ", runner=str(tmp_path / "executor_runner")
    )
    with pytest.raises(Fault, match="'XYZ'"):
        measured((open_device(other, tmp_path), None), package, latents, tmp_path)


def test_an_adb_that_hangs_is_stopped(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("ADB_TROUBLE", "hang push")
    profile = AdbProfile(
        name="phone", kind="adb", serial="R5C", runner=str(tmp_path / "executor_runner"),
        folder=str(phone[1]), command_seconds=1,
    )  # fmt: skip
    with pytest.raises(Fault, match="stopped after 1 s"):
        measured((open_device(profile, tmp_path), None), package, latents, tmp_path)


def test_where_adb_is_not_installed_the_error_has_the_command_to_install_it(
    phone, package, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="apt install adb"):
        measured(phone, package, latents, tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "x", "kind": "fax"}, r"devices\.x.*'fax'.*'adb'"),
        ({"name": "x", "kind": "adb"}, r"devices\.x\.runner: missing"),
        ({"name": "x", "kind": "host", "wings": 2}, r"devices\.x\.wings: unknown key"),
        ([], r"found \[\]"),
    ],
)
def test_an_invalid_profile_is_refused_with_the_path_of_its_key(document, message):
    with pytest.raises(UserError, match=message):
        parse_profile(document)
