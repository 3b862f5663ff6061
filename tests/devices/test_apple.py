"""A Mac behind a fake `ssh`, whose shell is this machine's: the runner that it is given is the
real one, the coremltools that it imports is not (tests/export/test_coreml.py has the real one)."""

import re

import numpy as np
import pytest

from tests.devices.fake_mac import HOST, make_mac
from tests.devices.small import PLAN, STRICT, expected_frames
from turbo_vaed.config.devices import AppleProfile, parse_profile
from turbo_vaed.devices import Failed, Measurement
from turbo_vaed.devices.device import measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import Fault, UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def mac(tmp_path, monkeypatch, coreml):
    """A Mac; its storage is a folder."""
    python = make_mac(tmp_path, monkeypatch, coreml.io)
    storage = tmp_path / "storage"
    profile = AppleProfile(
        name="studio", kind="apple", host=HOST, python=str(python), folder=str(storage),
        compute_unit="CPU_AND_GPU", command_seconds=60,
    )  # fmt: skip
    return open_device(profile, tmp_path), storage


def measured(mac, package, latents, tmp_path, seconds=60.0, plan=PLAN):
    return measure_on(
        mac[0], package, latents, plan=plan, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def left(mac):
    return list(mac[1].iterdir()) if mac[1].is_dir() else []


def test_a_package_is_measured_in_core_ml_and_its_frames_come_back(mac, coreml, latents, tmp_path):
    found = measured(mac, coreml, latents, tmp_path)
    assert isinstance(found, Measurement)
    assert [len(seconds) for seconds in found.seconds_by_process] == [3, 3]
    assert found.machine == "Apple M4 Pro, macOS 26.1, CPU_AND_GPU"
    assert found.runtime == "Core ML (coremltools 9.0)"
    assert (found.throttled, found.clips, found.unreliable_reason) == (False, 2, "")
    assert found.peak_memory_bytes >= found.baseline_memory_bytes > 1e6
    decoded = np.load(tmp_path / "out" / "decoded.npy")
    np.testing.assert_array_equal(decoded, expected_frames(coreml, latents))
    assert left(mac) == []


def test_processes_that_disagree_are_repeated_once_and_the_last_ones_count(
    mac, coreml, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("MAC_TROUBLE", "unsteady")
    found = measured(mac, coreml, latents, tmp_path, plan=STRICT)
    assert (found.processes, len(found.seconds_by_process)) == (4, 2)
    assert found.latency.high < 0.1


def test_a_mac_that_slows_itself_down_is_reported(mac, coreml, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEED", "70")
    found = measured(mac, coreml, latents, tmp_path)
    assert found.throttled and "heat" in found.unreliable_reason


def test_a_probe_reports_the_mac_and_what_is_missing(mac, monkeypatch):
    facts = mac[0].probe()
    assert (facts.model, facts.system) == ("Apple M4 Pro", "macOS 26.1")
    assert facts.free_bytes > 0 and facts.missing == ()
    monkeypatch.setenv("MAC_TROUBLE", "no coremltools")
    assert "pip install coremltools" in mac[0].probe().missing[0]


def test_a_mac_without_coremltools_is_not_a_failure_of_the_package(
    mac, coreml, latents, tmp_path, monkeypatch
):
    monkeypatch.setenv("MAC_TROUBLE", "no coremltools")
    with pytest.raises(UserError, match=r"ModuleNotFoundError: .*'coremltools'"):
        measured(mac, coreml, latents, tmp_path)
    assert left(mac) == []


@pytest.mark.parametrize(
    ("trouble", "seconds", "message"),
    [
        ("crash", 60.0, r"exit code 1\b.*Error in declaring"),
        ("hang", 1.0, "too long"),
    ],
)
def test_a_runner_that_crashes_or_hangs_is_a_result(
    mac, coreml, latents, tmp_path, monkeypatch, trouble, seconds, message
):
    monkeypatch.setenv("MAC_TROUBLE", trouble)
    found = measured(mac, coreml, latents, tmp_path, seconds)
    assert isinstance(found, Failed) and re.search(message, found.reason), found.reason
    assert left(mac) == []


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("lost", Fault, "went away"),
        ("garbage", Fault, "studio .*invalid report: Expecting value"),
        ("say scp scp: write: No space left on device", UserError, "No space"),
        ("say ssh me@studio.local: Permission denied (publickey).", UserError, "ssh-copy-id"),
        ("say ssh ssh: connect to host: Connection refused", Fault, "Remote Login"),
        ("say ssh Host key verification failed.", UserError, "by hand"),
        ("say ssh ssh: Could not resolve hostname studio.local", UserError, "correct host"),
    ],
)
def test_an_error_of_the_connection_is_raised_with_its_remedy(
    mac, coreml, latents, tmp_path, monkeypatch, trouble, error, message
):
    monkeypatch.setenv("MAC_TROUBLE", trouble)
    with pytest.raises(error, match=message):
        measured(mac, coreml, latents, tmp_path)
    assert not (tmp_path / "out" / "decoded.npy").exists()


def test_an_ssh_that_hangs_is_stopped(mac, coreml, latents, tmp_path, monkeypatch):
    monkeypatch.setenv("MAC_TROUBLE", "hang ssh")
    profile = AppleProfile(name="studio", kind="apple", host=HOST, command_seconds=1)
    with pytest.raises(Fault, match="stopped after 1 s"):
        measured((open_device(profile, tmp_path), mac[1]), coreml, latents, tmp_path)


def test_a_mac_runs_core_ml_packages_only(mac, android, latents, tmp_path):
    assert android.runtime not in mac[0].runtimes
    with pytest.raises(UserError, match=rf"{android.target}: studio .*\bcoreml only"):
        measured(mac, android, latents, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "me@studio; rm -rf /"}, r"devices\.x\.host: found 'me@studio; rm"),
        ({"compute_unit": "TPU"}, r"devices\.x\.compute_unit: found 'TPU'"),
        ({"folder": "relative"}, r"devices\.x\.folder: found 'relative'"),
    ],
)
def test_an_invalid_profile_is_refused_with_the_path_of_its_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_profile({"name": "x", "kind": "apple", "host": "studio", **change})
