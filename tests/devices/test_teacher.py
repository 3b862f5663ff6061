"""The teacher's decoder timed, on a given device and in a given precision."""

import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from turbo_vaed.devices import Plan, _teacher_runner, teacher
from turbo_vaed.devices.host import machine
from turbo_vaed.errors import Fault
from turbo_vaed.models import teachers

PLAN = Plan(
    threads=1, max_warmup=1, min_samples=3, max_samples=3, max_spread=100.0, confidence=0.95
)


@pytest.fixture
def clips(tmp_path):
    """Latents of two clips as the tiny teacher takes them."""
    path = tmp_path / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, 8, 3, 4, 4)).astype(np.float32))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_teacher_is_timed_in_bfloat16(tiny_teacher, clips):
    """As on a GPU, on the device that is here. The tests of the gate start the process."""
    found = teacher.measure_teacher(
        "ltx-video", tiny_teacher, clips,
        plan=PLAN, timeout_seconds=300, device="cpu", precision="bfloat16",
    )  # fmt: skip
    assert len(found.seconds) == 3 and min(found.seconds) > 0
    assert found.machine == machine()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_process_computes_on_the_device_and_in_the_precision_it_is_given(
    tmp_path, clips, monkeypatch, precision
):
    decoded = []

    def load(family, weights, dtype, device):
        assert (family, str(weights), device) == ("ltx-video", "weights", "cpu")
        return SimpleNamespace(decode=lambda one: decoded.append((dtype, one.dtype, one.shape)))

    monkeypatch.setattr(teachers, "load_teacher", load)
    result = tmp_path / "result.json"
    arguments = ["ltx-video", "weights", str(clips), json.dumps(dataclasses.asdict(PLAN))]
    _teacher_runner.main([str(result), *arguments, "cpu", precision])
    dtype = getattr(torch, precision)
    assert decoded == [(dtype, dtype, (1, 8, 3, 4, 4))] * 5  # cold, warm, three samples
    assert json.loads(result.read_text())["machine"] == machine()


@pytest.mark.slow
def test_pending_work_of_the_device_is_timed_and_earlier_work_is_not():
    """A decode that only enqueues work, as on a GPU; the clip was copied and awaited before."""
    pending = []

    def wait():
        time.sleep(sum(pending))
        pending.clear()

    def clip(turn):
        pending.append(0.2)
        return turn

    seconds = _teacher_runner.time_decodes(lambda _: pending.append(0.02), clip, PLAN, wait=wait)
    assert len(seconds) == 3
    assert all(0.02 <= each < 0.2 for each in seconds)


@pytest.mark.parametrize(
    ("reported", "problem"),
    [
        ({"latency_seconds": [], "machine": "m"}, "no sample"),
        ({"latency_seconds": [0.1, -1], "machine": "m"}, "found -1"),
        ({"latency_seconds": [0.1]}, "machine: found None"),
    ],
)
def test_an_invalid_report_is_a_fault(tiny_teacher, clips, monkeypatch, reported, problem):
    monkeypatch.setattr(teacher, "run_module", lambda *_, **__: reported)
    with pytest.raises(Fault, match=problem):
        teacher.measure_teacher("ltx-video", tiny_teacher, clips, plan=PLAN, timeout_seconds=9)
