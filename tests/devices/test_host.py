"""This host as a device: real programs in the real runtime, and what becomes of broken ones."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.devices.small import PLAN, SHAPE
from turbo_vaed.devices import Failed, Measurement, _machine, host
from turbo_vaed.devices.host import measure, open_package, read_decoded
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export import write_package
from turbo_vaed.runtime import isolated

pytestmark = pytest.mark.slow

COUNTS = {"plan": PLAN, "timeout_seconds": 120, "max_background_cpu_share": 1.0}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(5, *SHAPE[1:])).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def measured(package, latents, tmp_path_factory):
    """One measurement, made while this process is large, and what it left in its folder."""
    out = tmp_path_factory.mktemp("out")
    ballast = np.ones(1_500_000_000 // 8)  # a big parent must not be taken for a big decoder
    measurement = measure(package, latents, out_folder=out, **COUNTS)
    del ballast
    return measurement, out


def test_every_clip_is_decoded_as_pytorch_does(measured, decoder, latents):
    decoded = read_decoded(measured[1])
    with torch.no_grad():
        expected = decoder(torch.from_numpy(np.load(latents))).numpy()
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, expected, atol=1e-4)
    assert float(np.abs(expected[0] - expected[1]).max()) > 1e-2  # clips differ, and so in order
    assert [p.name for p in measured[1].iterdir()] == ["decoded.npy"]


def test_a_measurement_has_the_figures_of_its_run(measured, package):
    measurement = measured[0]
    assert [len(seconds) for seconds in measurement.seconds_by_process] == [3, 3]
    assert (measurement.threads, measurement.warmup, measurement.clips) == (1, 1, 5)
    assert measurement.package_sha256 == package.sha256
    assert 0 < min(measurement.seconds_by_process[0]) < 5
    # The cold start loads, verifies and runs: more than the best of the warm runs.
    assert measurement.cold_start_seconds > min(measurement.seconds_by_process[0])
    assert "executorch 1." in measurement.runtime


def test_memory_is_measured_for_the_process_only(measured):
    measurement = measured[0]
    assert 20e6 < measurement.baseline_memory_bytes <= measurement.peak_memory_bytes
    assert measurement.peak_memory_bytes < 1000e6  # this process had 1.5 GB more then


def test_a_measurement_survives_json(measured):
    measurement = measured[0]
    document = json.loads(json.dumps(measurement.to_json(), allow_nan=False))
    assert Measurement.from_json({**document, "teacher_latency_seconds": [1.0]}) == measurement


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cold_start_seconds", float("nan")),
        ("cold_start_seconds", 0),
        ("cold_start_seconds", "1"),
        ("seconds_by_process", []),
        ("seconds_by_process", [[]]),
        ("seconds_by_process", [0.1]),
        ("seconds_by_process", [[0.1, -0.1]]),
        ("seconds_by_process", [[0.1, float("inf")]]),
        ("confidence", 1.0),
        ("peak_memory_bytes", 0),
        ("baseline_memory_bytes", 0),
        ("peak_memory_bytes", 1.5),
        ("peak_memory_bytes", None),
        ("threads", 0),
        ("package_sha256", ""),
    ],
)
def test_an_impossible_measurement_is_refused(measured, key, value):
    with pytest.raises(ValueError, match=key):
        Measurement.from_json({**measured[0].to_json(), key: value})


def test_a_measurement_with_a_key_missing_is_refused(measured):
    document = measured[0].to_json()
    del document["cold_start_seconds"]
    with pytest.raises(ValueError, match="missing: cold_start_seconds"):
        Measurement.from_json(document)


def test_median_latency_ignores_one_busy_moment(measured):
    measurement = replace(measured[0], seconds_by_process=((0.1, 9.0, 0.2),))
    assert measurement.latency.median == 0.2
    assert measurement.fps == measurement.frames / 0.2


def test_a_program_that_crashes_is_a_result_with_its_last_words(latents, package, tmp_path):
    junk = tmp_path / "decoder.pte"
    junk.write_bytes(b"not a program " * 1000)
    spoiled = write_package(tmp_path / "package", junk, package.io)  # its sha256 is right
    found = measure(spoiled, latents, out_folder=tmp_path / "out", **COUNTS)
    assert isinstance(found, Failed)
    assert re.search(r"executorch.* exit code 1\b(?s:.)*Error", found.reason)
    assert found.package_sha256 == spoiled.sha256
    assert not (tmp_path / "out" / "decoded.npy").exists()


@pytest.mark.usefixtures("in_this_process")
def test_a_program_whose_output_has_another_shape_is_a_fault(latents, package, tmp_path):
    _, _, frames, height, width = package.io.video_shape
    lying = replace(package.io, video_shape=(1, 3, frames + 1, height, width))
    spoiled = write_package(tmp_path / "package", package.program_path, lying)
    with pytest.raises(Fault, match=r"of shape \(5, 3, 4, 16, 24\)"):
        measure(spoiled, latents, out_folder=tmp_path / "out", **COUNTS)


def test_a_slow_device_is_stopped(package, latents, tmp_path):
    start = time.monotonic()
    found = measure(package, latents, out_folder=tmp_path, **{**COUNTS, "timeout_seconds": 0.3})
    assert isinstance(found, Failed) and "stopped after 0.3 s" in found.reason
    assert time.monotonic() - start < 5


def test_an_altered_package_is_refused(package, tmp_path):
    folder = write_package(tmp_path / "package", package.program_path, package.io).folder
    program = folder / "decoder.pte"
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=r"decoder\.pte"):
        open_package(folder)
    with pytest.raises(CorruptFile, match=r"package\.json"):
        open_package(tmp_path / "none")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 2, 4, 7), np.float32), r"\(2, 8, 2, 4, 7\).*\(1, 8, 2, 4, 6\)"),
        (np.zeros((2, 8, 2, 4, 6)), "float64"),
        (np.zeros((0, 8, 2, 4, 6), np.float32), "shape"),
        (np.zeros((8, 2, 4, 6), np.float32), "shape"),
    ],
)
def test_latents_that_do_not_fit_are_refused(package, tmp_path, array, message):
    np.save(tmp_path / "latents.npy", array)
    with pytest.raises(UserError, match=message):
        measure(package, tmp_path / "latents.npy", out_folder=tmp_path, **COUNTS)


def test_latents_that_are_not_a_npy_file_are_refused(package, tmp_path):
    (tmp_path / "latents.npy").write_text("text")
    for path in (tmp_path / "latents.npy", tmp_path / "none.npy"):
        with pytest.raises(UserError, match=r"not a \.npy file"):
            measure(package, path, out_folder=tmp_path, **COUNTS)


@pytest.fixture
def runs_of(package, latents, tmp_path, monkeypatch, measured):
    """`measure` where each process reports what it is given here, in turns."""

    def measure_with(*reports, max_spread=0.1, max_background_cpu_share=0.25):
        turns = iter(reports)
        made = []

        def once(*_):
            seconds, others = next(turns)
            made.append(seconds)
            found = measured[0]
            return replace(found, seconds_by_process=(tuple(seconds),), background_cpu_share=others)

        monkeypatch.setattr(host, "_once", once)
        plan = replace(PLAN, max_spread=max_spread)
        found = measure(package, latents, plan=plan, out_folder=tmp_path,
                        timeout_seconds=1,
                        max_background_cpu_share=max_background_cpu_share)  # fmt: skip
        return found, len(made)

    return measure_with


def test_two_processes_that_agree_are_enough(runs_of):
    found, processes = runs_of(([0.1] * 9, 0.01), ([0.101] * 9, 0.02))
    assert (processes, found.unreliable_reason, found.background_cpu_share) == (2, "", 0.02)
    assert (found.latency.low, found.latency.high) == (0.1, 0.101)


def test_processes_are_repeated_until_they_agree(runs_of):
    found, processes = runs_of(([0.2] * 9, 0.0), ([0.1] * 9, 0.0), ([0.1] * 9, 0.0))
    assert (processes, found.unreliable_reason, found.latency.median) == (3, "", 0.1)
    assert found.processes == 3


def test_times_that_never_agree_are_unreliable_with_their_spread(runs_of):
    found, processes = runs_of(*(([0.1 * k] * 9, 0.0) for k in (1, 4, 1, 4)))
    assert processes == 4
    assert re.search(r"0\.1 and 0\.4 s.*120%.*<= 100%", found.unreliable_reason)


def test_times_within_the_refused_spread_widen_the_interval(runs_of):
    found, processes = runs_of(*(([0.1 * k] * 9, 0.0) for k in (1, 2, 1, 2)))
    assert (processes, found.unreliable_reason) == (4, "")
    assert (found.latency.low, found.latency.high) == (0.1, 0.2)


def test_times_on_a_busy_machine_are_unreliable_with_its_cpu_share(runs_of):
    found, processes = runs_of(*(([0.1] * 9, 0.5) for _ in range(4)))
    assert processes == 4
    assert re.search("other processes .*50%.*<= 25%", found.unreliable_reason)
    allowed, _ = runs_of(*(([0.1] * 9, 0.5) for _ in range(4)), max_background_cpu_share=1.0)
    assert allowed.unreliable_reason == ""


def test_the_cpu_share_of_other_processes_is_measured():
    burn = "import time; end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(os.cpu_count() or 1)]
    try:
        before = _machine.state()
        time.sleep(1.0)
        busy = _machine.between(before, _machine.state())
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert busy.background_cpu_share > 0.5  # this process slept: all that was done, others did


def run_code(code: str, tmp_path: Path, monkeypatch, timeout_seconds: float = 60):
    """`run_module` on a module with this code; it gets RESULT as sys.argv[1]."""
    (tmp_path / "a_device_process.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return isolated.run_module(
        "a_device_process", [], threads=1, timeout_seconds=timeout_seconds, what="the device"
    )


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text({!r})"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", r"crashed \(SIGABRT\)"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL.*memory"),
        ("import sys; sys.exit('out of cheese')", "exit code 1.*cheese"),
        ("print('x' * 9999); raise ValueError('late words')", "late words"),
        ("", "no result"),
        (WRITE.format('{"latency'), "not JSON"),
        (WRITE.format("[1]"), "left list"),
    ],
)
def test_a_child_that_fails_is_a_fault_with_its_last_words(code, message, tmp_path, monkeypatch):
    with pytest.raises(Fault, match=f"(?s)the device.*{message}") as caught:
        run_code(code, tmp_path, monkeypatch)
    assert len(str(caught.value)) < 3000


def test_a_hanging_process_and_its_children_are_ended(tmp_path, monkeypatch):
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(Fault, match="stopped after"):
        run_code(code, tmp_path, monkeypatch, timeout_seconds=3)
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_runner_imports_no_model_and_no_exporter():
    """What the child loads is its memory: the runtime and PyTorch, no model and no exporter."""
    code = (
        "import sys; import turbo_vaed.devices._host_runner as r\n"
        "try: r.main(['a', 'executorch-xnnpack', 'b', '/nonexistent.npy', 'd', 'null'])\n"
        "except FileNotFoundError: pass\n"
        "else: raise SystemExit('it ran on nothing')\n"
        "bad = [m for m in sys.modules if m.startswith(('turbo_vaed.models', 'executorch.exir',"
        " 'diffusers', 'transformers', 'torchao'))]\n"
        "raise SystemExit(f'it loads {bad[:5]}' if bad else 0)"
    )
    root = Path(isolated.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
