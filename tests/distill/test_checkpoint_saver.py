"""A saver: training goes on while bytes are written, and a failed write is retried and reported."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distill.checkpoints import make_checkpoint
from tests.drills.faults import FlakyS3
from turbo_vaed.distill import checkpoints as saver_module
from turbo_vaed.distill.checkpoints import Saver, Store
from turbo_vaed.errors import Fault

pytestmark = pytest.mark.timeout(120)


def steps(store):
    return [int(name[:8]) for name in store.names()]


FAILURE = "a planted failure"


def of(events, kind):
    return [event["step"] for event in events if event["event"] == kind]


class Faulty(Store):
    """A store whose next writes fail, or wait at a gate."""

    failures = 0
    gate = None

    def write(self, state):
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.failures:
            self.failures -= 1
            raise Fault(FAILURE)
        return super().write(state)

    @property
    def started(self):
        return self.__dict__.setdefault("_started", threading.Event())


@pytest.fixture
def store(tmp_path):
    return Faulty(str(tmp_path / "checkpoints"), keep=9)


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr(saver_module, "backoff_seconds", lambda failures: 0.01)


def test_a_save_has_the_state_at_the_time_of_the_call(store):
    """Training updates the same tensors in place, while and after they are written; the saver
    uses its own memory again."""
    state = make_checkpoint(0)
    with Saver(store, lambda event: None) as saver:
        for step in range(1, 6):
            store.gate = threading.Event()
            state.student["w"].fill_(step)
            state.student["half"].fill_(step)
            state.optimizer["state"][0]["step"].fill_(step)
            state.history.append({"step": step})
            saver.submit(replace(state, step=step))
            state.student["w"].fill_(-1)
            state.student["half"].fill_(-1)
            state.optimizer["state"][0]["step"].fill_(-1)
            store.gate.set()
            saver.flush(60)
            state.history[-1]["val_psnr"] = 1.0
    for name in store.names():
        found = store.read(name)
        assert found.student["w"].tolist() == [found.step] * 4
        assert found.student["half"].tolist() == [found.step] * 2
        assert found.optimizer["state"][0]["step"] == found.step
        assert found.history[-1] == {"step": found.step}
        assert found.optimizer["param_groups"] == state.optimizer["param_groups"]


def test_memory_is_reused_between_saves(store):
    written, write = [], store.write
    store.write = lambda state: (written.append(state.student["w"].data_ptr()), write(state))[1]
    with Saver(store, lambda event: None) as saver:
        for step in range(1, 4):
            saver.submit(make_checkpoint(step))
            saver.flush(60)
        saver.submit(make_checkpoint(4, numbers=9))  # of another shape
    assert len(set(written[:3])) == 1
    assert store.newest(pytest.fail)[1].student["w"].tolist() == list(range(4, 13))


def test_a_newer_state_replaces_a_queued_one(store):
    store.gate, events = threading.Event(), []
    with Saver(store, events.append) as saver:
        saver.submit(make_checkpoint(1))
        assert store.started.wait(60)
        for step in (2, 3, 4):
            saver.submit(make_checkpoint(step))
        store.gate.set()
        saver.flush(60)
        assert of(events, "checkpoint") == [1, 4]  # reported when the flush returns
    assert steps(store) == [4, 1]


def test_a_state_is_not_written_while_a_newer_one_takes_its_memory(store, monkeypatch):
    store.gate, events, second = threading.Event(), [], threading.Event()

    def on_event(event):
        events.append(event)
        if len(events) == 2:
            second.set()

    def slow_copy(*arguments, copy=saver_module.copied):
        if not store.gate.is_set():
            store.gate.set()
            second.wait(0.2)  # the thread's chance to write the one that waits
        return copy(*arguments)

    with Saver(store, on_event) as saver:
        saver.submit(make_checkpoint(1))
        assert store.started.wait(60)
        saver.submit(make_checkpoint(2))
        monkeypatch.setattr(saver_module, "copied", slow_copy)
        saver.submit(make_checkpoint(3))
    assert of(events, "checkpoint") == [1, 3]


def test_a_failed_write_is_reported_and_retried(store, no_delay):
    store.failures, events = 2, []
    with Saver(store, events.append) as saver:
        saver.submit(make_checkpoint(7))
        saver.flush(60)
    assert [event["event"] for event in events] == [
        "checkpoint_failed", "checkpoint_failed", "checkpoint"
    ]  # fmt: skip
    assert events[0]["text"] == FAILURE and events[0]["step"] == 7
    (name,) = store.names()
    assert events[2].items() >= {"step": 7, "name": name}.items()
    assert events[2]["bytes"] > 0 and events[2]["seconds"] > 0 and events[2]["at"] > 1.7e9


def test_a_newer_state_replaces_a_failed_one(store, no_delay):
    store.gate, store.failures = threading.Event(), 1
    with Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(1))
        assert store.started.wait(60)
        saver.submit(make_checkpoint(2))
        store.gate.set()
    assert steps(store) == [2]


def test_flush_raises_the_reason_of_a_failed_write(store, monkeypatch):
    monkeypatch.setattr(saver_module, "_LAST_SECONDS_AFTER_ERROR", 0.01)
    store.failures, failed = 10**6, threading.Event()
    with (
        pytest.raises(Fault, match=rf"0\.01 s: {FAILURE}"),
        Saver(store, lambda event: failed.set()) as saver,
    ):
        saver.submit(make_checkpoint(1))
        assert failed.wait(60)
        saver.flush(0.01)


def test_flush_does_not_wait_for_a_long_delay(store, monkeypatch):
    monkeypatch.setattr(saver_module, "backoff_seconds", lambda n: 600.0 if n else 0.01)
    store.failures, events = 3, []
    failed_twice = threading.Event()

    def on_event(event):
        events.append(event)
        if len(events) == 2:
            failed_twice.set()

    with Saver(store, on_event) as saver:
        saver.submit(make_checkpoint(1))
        assert failed_twice.wait(60)
        saver.flush(60)
    assert of(events, "checkpoint") == [1]


def test_leaving_writes_a_queued_state_or_raises_the_reason(store, monkeypatch):
    with Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(1))
    assert steps(store) == [1]
    with pytest.raises(Fault, match="saver"):
        saver.submit(make_checkpoint(2))
    monkeypatch.setattr(saver_module, "_LAST_SECONDS", 0.01)
    store.failures = 10**6
    with pytest.raises(Fault, match=FAILURE), Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(2))


def test_an_exception_in_the_block_neither_hangs_nor_is_hidden(store, monkeypatch):
    monkeypatch.setattr(saver_module, "_LAST_SECONDS_AFTER_ERROR", 0.01)
    store.gate = threading.Event()
    with pytest.raises(RuntimeError, match="boom"), Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(1))
        assert store.started.wait(60)
        raise RuntimeError("boom")
    store.gate.set()


def test_an_exception_in_the_block_still_writes_a_queued_state(store, monkeypatch):
    monkeypatch.setattr(saver_module, "_LAST_SECONDS_AFTER_ERROR", 60)
    store.gate = threading.Event()
    with pytest.raises(RuntimeError, match="boom"), Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(1))
        assert store.started.wait(60)
        saver.submit(make_checkpoint(2))
        threading.Timer(0.05, store.gate.set).start()
        raise RuntimeError("boom")
    assert steps(store) == [2, 1]


def test_a_state_that_could_not_be_read_back_is_refused(store):
    state = make_checkpoint(1)
    state.history.append({"step": 2, "val_psnr": np.float64(30.0)})
    with (
        Saver(store, lambda event: None) as saver,
        pytest.raises(TypeError, match=r"history\[1\]\['val_psnr'\], a float64"),
    ):
        saver.submit(state)


@pytest.mark.slow
def test_writes_resume_after_s3_has_answered_500():
    """It is mended after the states were submitted: a saver that blocks would wait for ever."""
    failed, events = threading.Event(), []

    def on_event(event):
        events.append(event)
        if event["event"] == "checkpoint_failed":
            failed.set()

    with FlakyS3.started("checkpoints") as s3:
        store = Store("s3://checkpoints/run")
        with Saver(store, on_event) as saver:
            saver.submit(make_checkpoint(1))
            saver.flush(60)
            s3.is_down = True
            for step in (2, 3):
                saver.submit(make_checkpoint(step))
            assert failed.wait(60)
            saver.submit(make_checkpoint(4))
            s3.is_down = False
            saver.flush(60)
        assert s3.refused > 0
        assert "s3://checkpoints/run" in next(
            event["text"] for event in events if event["event"] == "checkpoint_failed"
        )
        assert store.newest(pytest.fail)[1].step == 4


_FULL_DISK = """
import sys
import torch
from turbo_vaed.distill import checkpoints as saver_module
from turbo_vaed.distill.checkpoints import Saver, Store
from turbo_vaed.errors import Fault
from tests.distill.checkpoints import make_checkpoint as make

saver_module.backoff_seconds = lambda failures: 0.01
folder = sys.argv[1]
store = Store(folder, keep=3)
steps = lambda: [int(name[:8]) for name in store.names()]
events = []
MB = 2**20 // 12  # numbers, of 4 bytes, in each of three sets of weights

with Saver(store, events.append) as saver:
    for step in (1, 2, 3):
        saver.submit(make(step, numbers=MB))
        saver.flush(60)
    assert not [e for e in events if e["event"] != "checkpoint"], events
    saver.submit(make(4, numbers=MB))  # a fourth does not fit beside three
    saver.flush(60)
    (failed,) = [e for e in events if e["event"] == "checkpoint_failed"]
    assert "No space left" in failed["text"] and "removed 00000001-" in failed["text"], failed
    assert steps() == [4, 3, 2], steps()

    newest = f"{folder}/{store.names()[0]}"
    with open(newest, "r+b") as file:
        file.write(b"spoilt")
    saver_module._LAST_SECONDS = 0.01
    saver.submit(make(5, numbers=4 * MB))  # one that never fits
    try:
        saver.flush(5)
    except Fault as fault:
        assert "No space left" in str(fault) and "free space" in str(fault), fault
        print("refused", steps(), store.newest(lambda text: None)[1].step, end=" ")
    saver.submit(make(6, numbers=MB))
    saver_module._LAST_SECONDS = 60
import os
print(steps(), len(os.listdir(folder)))
"""


@pytest.mark.slow
def test_the_oldest_checkpoints_make_room_on_a_full_disk(tmp_path):
    """The oldest make room; the last whole one stays, whatever does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    mount = 'mount -t tmpfs -o size=3600k small "$1" || exit 99; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*alone, "sh", "-c", mount, "sh", str(disk), sys.executable, _FULL_DISK],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    refused = done.returncode == 99 or "unshare:" in done.stderr
    assert not refused, f"a small disk cannot be mounted here, run as root: {done.stderr}"
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused [3] 3 [6, 3] 2\n"


def test_an_exceeded_quota_is_treated_as_a_full_disk(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    for step in (1, 2):
        store.write(make_checkpoint(step))

    def exceeded(folder, name, serialise):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("turbo_vaed.distill.checkpoint_storage.Folder.write", exceeded)
    with pytest.raises(Fault, match=rf"{os.strerror(errno.EDQUOT)}.*removed 00000001"):
        store.write(make_checkpoint(3))
    assert steps(store) == [2]


def test_the_number_of_torch_threads_stays(store):
    before = torch.get_num_threads()
    with Saver(store, lambda event: None) as saver:
        saver.submit(make_checkpoint(1))
    assert torch.get_num_threads() == before
