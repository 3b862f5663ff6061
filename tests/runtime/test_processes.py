"""A process ends with its parent run, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from turbo_vaed.runtime.processes import Process, ending_with_parent

CHILD = """
import sys, time, pathlib
from turbo_vaed.runtime.interrupts import signals_interrupt
from turbo_vaed.runtime import processes
processes.POLL_SECONDS = 0.1
folder = pathlib.Path(sys.argv[1])
try:
    with signals_interrupt(), processes.ending_with_parent():
        (folder / "began").touch()
        for _ in range(600):
            print("at work", flush=True)
            time.sleep(0.1)
except KeyboardInterrupt:
    print("saving", flush=True)
    (folder / "saved").touch()
"""
PARENT = f"""
import os, subprocess, sys
from turbo_vaed.runtime.processes import environment_of_children
environment = {{**os.environ, **environment_of_children()}}
child = subprocess.Popen(
    [sys.executable, "-c", {CHILD!r}, sys.argv[1]],
    env=environment, stdout=subprocess.PIPE, start_new_session=True,
)
print(child.pid, flush=True)
for _ in child.stdout: pass
"""


@pytest.mark.slow
def test_a_process_saves_and_ends_when_its_parent_was_killed(tmp_path: Path) -> None:
    """Its output, which nobody reads any more, does not end it before."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: (tmp_path / "began").exists())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: (tmp_path / "saved").exists())
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_for(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_by_hand_ends_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURBO_VAED_PARENT", raising=False)
    with ending_with_parent():
        pass


def test_a_process_is_known_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Process.of(child.pid)
    assert not found.has_ended()
    assert child.stdin is not None
    child.stdin.close()
    wait_for(found.has_ended)  # also before anybody has waited for it
    child.wait()
    assert found.has_ended()
