"""An Android phone behind a fake `adb`, whose shell is this machine's and whose runner is real
ExecuTorch: what cannot be here is the phone and the cable, and those misbehave."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.small import small_decoder
from turbo_vaed.device_params import AdbProfile, parse_profile
from turbo_vaed.devices import Failed, Measurement, Plan
from turbo_vaed.devices.device import measure_on
from turbo_vaed.devices.opened import open_device
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.export import Job, Target, export_package

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 8, 2, 4, 6)
PLAN = Plan(
    threads=1, max_warmup=1, min_samples=3, max_samples=3, max_spread=100.0, confidence=0.95
)
ADB = """#!{python}
import os, shutil, subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments[:1] == ["-s"]:
    if arguments[1] != "R5C":
        sys.exit(f"adb: device '{{arguments[1]}}' not found")
    arguments = arguments[2:]
trouble = os.environ.get("ADB_TROUBLE", "")
verb, rest = arguments[0], arguments[1:]
if trouble == f"hang {{verb}}":
    import time; time.sleep(600)
if trouble.startswith(f"say {{verb}} "):
    sys.exit(trouble.removeprefix(f"say {{verb}} "))
if verb == "push":
    shutil.copy(*rest)
elif verb == "pull":
    shutil.copytree(rest[0], rest[1], dirs_exist_ok=True)
elif verb == "shell":
    sys.exit(subprocess.run(["sh", "-c", rest[0]]).returncode)
"""
RUNNER = """#!{python}
import os, sys, time
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
trouble = os.environ.get("RUNNER_TROUBLE", "")
if trouble == "crash":
    os.abort()
if trouble == "hang":
    time.sleep(600)
if trouble == "garbage":
    print("hello"); time.sleep(0.3); sys.exit(0)
import numpy as np, torch
from turbo_vaed.devices._runtimes import open_program
run = open_program("executorch-xnnpack", given["model_path"], int(given["cpu_threads"]))
print("I 00:00:00 executor_runner.cpp:333] Model loaded in 12.5 ms.", file=sys.stderr)
latents = np.fromfile(given["inputs"], dtype="<f4").reshape({shape})
count = int(given["num_executions"])
for i in range(count):
    start = time.perf_counter()
    video = run(latents)
    ms = (time.perf_counter() - start) * 1000
    print(f"I 00:00:00 x.cpp:1] Iteration {{i + 1}} of {{count}}: {{ms:.4f}} ms", file=sys.stderr)
video.astype("<f4").tofile(given["output_file"] + "-0.bin")
time.sleep(0.3)
"""
GETPROP = """#!/bin/sh
case $1 in
  ro.product.manufacturer) echo Acme ;; ro.product.model) echo P1 ;;
  ro.build.version.release) echo 15 ;; ro.product.cpu.abi) echo arm64-v8a ;;
esac
"""
DUMPSYS = """#!/bin/sh
case $1 in
  thermalservice) echo "Thermal Status: ${HOT:-0}" ;;
  battery) echo " temperature: 312" ;;
esac
"""
DF = """#!/bin/sh
echo "Filesystem 1K-blocks Used Available Use% Mounted on"
echo "/dev/block/dm-5 1000 400 600 40% /data"
"""


@pytest.fixture(scope="module")
def decoder():
    return small_decoder()


@pytest.fixture(scope="module")
def package(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    job = Job(decoder=decoder, latent_shape=SHAPE, precision="fp32", folder=folder / "program")
    return export_package(Target.parse("executorch-xnnpack/fp32"), folder / "package", job)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, *SHAPE[1:])).astype(np.float32))
    return path


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A phone with a runner; its storage is a folder, its troubles are in two variables."""
    commands = tmp_path / "commands"
    commands.mkdir()
    runner = tmp_path / "executor_runner"
    for path, text in (
        (commands / "adb", ADB.format(python=sys.executable)),
        (commands / "getprop", GETPROP),
        (commands / "dumpsys", DUMPSYS),
        (commands / "df", DF),
        (runner, RUNNER.format(python=sys.executable, shape=SHAPE)),
    ):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    storage = tmp_path / "storage"
    profile = AdbProfile(
        name="phone", kind="adb", serial="R5C", runner=str(runner), folder=str(storage),
        command_seconds=60,
    )  # fmt: skip
    return open_device(profile, tmp_path), storage


def measured(phone, package, latents, tmp_path, seconds=60.0):
    return measure_on(
        phone[0], package, latents, plan=PLAN, out_folder=tmp_path / "out", timeout_seconds=seconds
    )


def left(storage: Path) -> list[Path]:
    return list(storage.iterdir()) if storage.is_dir() else []


def test_a_package_is_measured_and_its_frames_come_back(phone, package, latents, decoder, tmp_path):
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
        ({"name": "x", "kind": "fax"}, r"devices\.x\.kind: found 'fax'; allowed: host, adb"),
        ({"name": "x", "kind": "adb"}, r"devices\.x\.runner: missing"),
        ({"name": "x", "kind": "host", "wings": 2}, r"devices\.x\.wings: unknown key"),
        ([], "expected a mapping"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_its_path(document, said):
    with pytest.raises(UserError, match=said):
        parse_profile(document)
