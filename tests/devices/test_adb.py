"""An Android phone behind a fake `adb`, whose shell is this machine's and whose runner is real
ExecuTorch: what cannot be here is the phone and the cable, and those misbehave."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.devices.fake_phone import SERIAL, make_phone
from tests.devices.small import PLAN, SHAPE
from turbo_vaed.device_params import AdbProfile, parse_profile
from turbo_vaed.devices import Failed, Measurement
from turbo_vaed.devices.device import measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import Fault, UserError


@pytest.fixture
def phone(tmp_path, monkeypatch, package):
    """A phone with a runner; its storage is a folder."""
    runner = make_phone(tmp_path, monkeypatch, SHAPE, package.io.video_shape)
    storage = tmp_path / "storage"
    profile = AdbProfile(
        name="phone", kind="adb", serial=SERIAL, runner=str(runner), folder=str(storage),
        command_seconds=60,
    )  # fmt: skip
    return open_device(profile, tmp_path), storage


def measured(phone, package, latents, tmp_path, seconds=60.0):
    return measure_on(
        phone[0], package, latents, plan=PLAN, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def left(storage: Path) -> list[Path]:
    return list(storage.iterdir()) if storage.is_dir() else []


def test_a_package_is_measured_and_its_frames_come_back(
    phone, package, latents, decoder, tmp_path, monkeypatch
):
    monkeypatch.setenv("RUNNER_IS_REAL", "1")
    found = measured(phone, package, latents, tmp_path)
    assert isinstance(found, Measurement)
    assert [len(seconds) for seconds in found.seconds_by_process] == [3, 3]
    assert found.cold_start_seconds > 0.0125 and found.peak_memory_bytes > 1e6
    assert (found.temperature_celsius, found.throttled, found.clips) == (31.2, False, 2)
    assert found.machine == "P1, arm64-v8a, Android 15"
    with torch.no_grad():
        expected = decoder(torch.from_numpy(np.load(latents))).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "decoded.npy"), expected, atol=1e-4)
    assert left(phone[1]) == []


def test_a_hot_phone_is_told(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("HOT", "2")
    found = measured(phone, package, latents, tmp_path)
    assert found.throttled and "heat" in found.distrust


def test_a_probe_tells_of_the_phone_and_of_what_is_missing(phone, tmp_path):
    facts = phone[0].probe()
    assert facts.free_bytes == 600 * 1024
    assert (facts.model, facts.system, facts.abi) == ("Acme P1", "Android 15", "arm64-v8a")
    (tmp_path / "executor_runner").unlink()
    assert "build executor_runner" in phone[0].probe().missing[0]


@pytest.mark.parametrize(
    ("trouble", "seconds", "said"),
    [("crash", 60.0, "failed with exit code"), ("hang", 2.0, "it took too long")],
)
def test_a_runner_that_crashes_or_hangs_is_a_result(
    phone, package, latents, tmp_path, monkeypatch, trouble, seconds, said
):
    monkeypatch.setenv("RUNNER_TROUBLE", trouble)
    found = measured(phone, package, latents, tmp_path, seconds)
    assert isinstance(found, Failed) and said in found.reason
    assert left(phone[1]) == []


def test_garbage_of_the_runner_is_a_fault(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNNER_TROUBLE", "garbage")
    with pytest.raises(Fault, match=r"it said: hello|0 bytes for clip 0"):
        measured(phone, package, latents, tmp_path)
    assert left(phone[1]) == []


@pytest.mark.parametrize(
    ("trouble", "error", "said"),
    [
        ("say push adb: error: failed to copy: No space left on device", UserError, "free some"),
        ("say shell error: device unauthorized.", UserError, "allow USB debugging"),
        ("say shell error: device offline", Fault, "pull the cable"),
        ("say shell error: more than one device/emulator", UserError, "serial in its profile"),
        ("say pull error: device disconnected", Fault, "unplugged"),
        ("say pull what is that", Fault, "exit code 1: what is that"),
    ],
)
def test_what_is_wrong_with_the_phone_is_said_with_what_to_do(
    phone, package, latents, tmp_path, monkeypatch, trouble, error, said
):
    monkeypatch.setenv("ADB_TROUBLE", trouble)
    with pytest.raises(error, match=said):
        measured(phone, package, latents, tmp_path)
    assert not (tmp_path / "out" / "decoded.npy").exists()


def test_a_phone_of_another_serial_is_not_taken(phone, package, latents, tmp_path):
    other = AdbProfile(
        name="other", kind="adb", serial="XYZ", runner=str(tmp_path / "executor_runner")
    )
    with pytest.raises(Fault, match="'XYZ' not found"):
        measured((open_device(other, tmp_path), None), package, latents, tmp_path)


def test_an_adb_that_hangs_is_stopped(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("ADB_TROUBLE", "hang push")
    profile = AdbProfile(
        name="phone", kind="adb", serial="R5C", runner=str(tmp_path / "executor_runner"),
        folder=str(phone[1]), command_seconds=1,
    )  # fmt: skip
    with pytest.raises(Fault, match="stopped after 1 s"):
        measured((open_device(profile, tmp_path), None), package, latents, tmp_path)


def test_without_adb_it_says_how_to_get_it(phone, package, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="apt install adb"):
        measured(phone, package, latents, tmp_path)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"name": "x", "kind": "fax"}, r"devices\.x\.kind: found 'fax'; allowed: host, adb, apple"),
        ({"name": "x", "kind": "adb"}, r"devices\.x\.runner: missing"),
        ({"name": "x", "kind": "host", "wings": 2}, r"devices\.x\.wings: unknown key"),
        ([], "expected a mapping"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_its_path(document, said):
    with pytest.raises(UserError, match=said):
        parse_profile(document)
