"""An iPhone behind a fake `ssh` and a fake `xcrun devicectl`: what is real is all that this project
does, and the bytes that an app is given and gives back; the phone, its app and the Mac are not."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.devices.fake_iphone import APP, UDID, make_iphone
from tests.devices.fake_mac import HOST
from tests.devices.small import PLAN, STRICT, expected_frames
from turbo_vaed.config.devices import AppleProfile, parse_profile
from turbo_vaed.devices import Failed, Measurement
from turbo_vaed.devices.device import measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import Fault, UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def iphone(tmp_path, monkeypatch, coreml):
    """An iPhone; the container of its app, and a folder that is the Mac's storage."""
    container = make_iphone(tmp_path, monkeypatch, coreml.io)
    storage = tmp_path / "storage"
    profile = AppleProfile(
        name="iphone", kind="apple", host=HOST, iphone=UDID, app=APP, folder=str(storage),
        compute_unit="CPU_AND_NE", command_seconds=30,
    )  # fmt: skip
    return open_device(profile, tmp_path), container, storage


def measured(iphone, package, latents, tmp_path, seconds=60.0, plan=PLAN):
    return measure_on(
        iphone[0], package, latents, plan=plan, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def left(iphone):
    """On the Mac; and of the job on the phone."""
    on_mac = list(iphone[2].iterdir()) if iphone[2].is_dir() else []
    job = iphone[1] / "Documents/turbo-vaed"
    return on_mac + [p for p in job.rglob("*") if p.name != "empty"]


def test_a_package_is_measured_by_the_app_and_its_frames_come_back(
    iphone, coreml, latents, tmp_path
):
    found = measured(iphone, coreml, latents, tmp_path)
    assert isinstance(found, Measurement)
    assert [len(seconds) for seconds in found.seconds_by_process] == [3, 3]
    assert (found.machine, found.runtime) == ("iPhone18,3, iOS 26.1", "Core ML")
    assert (found.throttled, found.clips, found.unreliable_reason) == (False, 2, "")
    assert (found.cold_start_seconds, found.peak_memory_bytes) == (0.5, 50_000_000)
    decoded = np.load(tmp_path / "out" / "decoded.npy")
    np.testing.assert_array_equal(decoded, expected_frames(coreml, latents))
    assert left(iphone) == []


def test_a_half_precision_package_takes_and_returns_float16(iphone, half, latents, tmp_path):
    profile = replace(iphone[0].profile, app_runs=("executorch-xnnpack",))
    device = replace(iphone[0], profile=profile)
    assert isinstance(measured((device, *iphone[1:]), half, latents, tmp_path), Measurement)
    found = np.load(tmp_path / "out" / "decoded.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected_frames(half, latents))


def test_processes_that_disagree_are_repeated_once_and_the_last_ones_count(
    iphone, coreml, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("IPHONE_TROUBLE", "unsteady")
    found = measured(iphone, coreml, latents, tmp_path, plan=STRICT)
    assert found.seconds_by_process == ((0.01,) * 3,) * 2
    assert found.processes == 4
    assert left(iphone) == []


def test_an_iphone_that_was_hot_is_reported(iphone, coreml, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("HOT", "1")
    found = measured(iphone, coreml, latents, tmp_path)
    assert found.throttled and "heat" in found.unreliable_reason


def test_a_probe_reports_the_iphone_and_what_is_missing(iphone, monkeypatch):
    facts = iphone[0].probe()
    assert (facts.model, facts.system) == ("iPhone 17 (iPhone18,3)", "iOS 26.1")
    assert UDID in facts.chosen and HOST in facts.chosen and facts.missing == ()
    for trouble, remedy in (("no app", f"install app --device {UDID}"), ("no xcode", "Xcode 16")):
        monkeypatch.setenv("IPHONE_TROUBLE", trouble)
        assert remedy in iphone[0].probe().missing[0]


@pytest.mark.parametrize(
    ("trouble", "seconds", "message"),
    [
        ("crash", 60.0, "ended before .*Error in declaring"),
        ("second crash", 60.0, "ended before .*Error in declaring"),
        ("slow", 1.0, "too long"),
    ],
)
def test_an_app_that_crashes_or_is_too_slow_is_a_result(
    iphone, coreml, latents, tmp_path, monkeypatch, trouble, seconds, message
):
    monkeypatch.setenv("IPHONE_TROUBLE", trouble)
    found = measured(iphone, coreml, latents, tmp_path, seconds)
    assert isinstance(found, Failed) and found.machine == "iPhone18,3, iOS 26.1"
    assert re.search(f"(?s){message}", found.reason), found.reason
    assert left(iphone) == []


LOCKED = "Unable to launch com.example.bench because the device was not, or could not be, unlocked."


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        (f"say launch {LOCKED}", UserError, "Auto-Lock"),
        ("say to No space left on device", UserError, "on the Mac"),
        ("say to Developer Mode is disabled.", UserError, "Privacy & Security"),
        ("no xcode", UserError, "Xcode 16"),
        ("lost", Fault, "unplugged"),
        ("another app", Fault, rf"{APP} .*docs/on-device\.md"),
        ("stale", Fault, r"found \{'job': '0000"),
        ("garbage", Fault, "no result .*Expecting value"),
        ("forgetful", Fault, "missing: throttled"),
        ("short frames", Fault, "put out 10 bytes for 2 clips, expected"),
    ],
)
def test_an_error_of_the_connection_is_raised_with_its_remedy(
    iphone, coreml, latents, tmp_path, monkeypatch, trouble, error, message
):
    monkeypatch.setenv("IPHONE_TROUBLE", trouble)
    with pytest.raises(error, match=message):
        measured(iphone, coreml, latents, tmp_path)
    assert not (tmp_path / "out" / "decoded.npy").exists()
    assert not iphone[2].is_dir() or list(iphone[2].iterdir()) == []


def test_a_result_of_an_earlier_job_is_not_used(iphone, coreml, latents, tmp_path, monkeypatch):
    assert isinstance(measured(iphone, coreml, latents, tmp_path), Measurement)
    monkeypatch.setenv("IPHONE_TROUBLE", f"say launch {LOCKED}")
    with pytest.raises(UserError, match=r"(?s)no result.*Auto-Lock"):
        measured(iphone, coreml, latents, tmp_path)


def test_another_iphone_is_not_used(iphone, coreml, latents, tmp_path):
    other = replace(iphone[0], profile=replace(iphone[0].profile, iphone="00008150-0000BBBB"))
    with pytest.raises(Fault, match="devicectl list devices"):
        measured((other, *iphone[1:]), coreml, latents, tmp_path)


def test_a_devicectl_that_hangs_is_stopped(iphone, coreml, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("IPHONE_TROUBLE", "hang launch")
    quick = replace(iphone[0], profile=replace(iphone[0].profile, command_seconds=2))
    with pytest.raises(Fault, match="stopped after 3 s"):
        measured((quick, *iphone[1:]), coreml, latents, tmp_path, seconds=1.0)


def test_an_iphone_runs_only_what_its_app_was_built_for(iphone, android, latents, tmp_path):
    with pytest.raises(UserError, match=rf"{android.target}: iphone .*\bcoreml only"):
        measured(iphone, android, latents, tmp_path)
    profile = replace(iphone[0].profile, app_runs=("executorch-coreml", "executorch-xnnpack"))
    assert android.runtime in replace(iphone[0], profile=profile).runtimes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iphone": UDID}, r"devices\.x: .*iphone.*app"),
        ({"app": APP}, r"devices\.x: .*iphone.*app"),
        ({"iphone": "a b", "app": APP}, r"devices\.x\.iphone: found 'a b'"),
        ({"iphone": UDID, "app": "a;b"}, r"devices\.x\.app: found 'a;b'"),
        ({"app_runs": ["onnx"]}, r"devices\.x\.app_runs.*: found 'onnx'"),
        ({"app_runs": []}, r"devices\.x\.app_runs: found"),
    ],
)
def test_an_invalid_profile_is_refused_with_the_path_of_its_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_profile({"name": "x", "kind": "apple", "host": "studio", **change})
