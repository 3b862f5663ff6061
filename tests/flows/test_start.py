"""What a run from a terminal starts, and what it prints of a failure."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import start, states


@pytest.mark.parametrize(
    ("name", "message", "is_printed"),
    [
        ("prefect.flow_runs", "Encountered exception during execution: Fault('x')", False),
        ("prefect.task_runs", "Task run failed with exception: Fault('x')", False),
        ("prefect.task_runs", "Task run failed with exception: Fault('x') - Retry 1/1 will", True),
        ("prefect.flow_runs", "Finished in state Failed('Flow run encountered x')", False),
        ("prefect.flow_runs", "Finished in state GateFailed('x')", False),
        ("prefect.flow_runs", "Finished in state Completed()", True),
        ("flows.effects", "Finished in state Failed( is nothing of Prefect's", True),
    ],
)
def test_a_failure_is_printed_by_the_command_only(name, message, is_printed):
    (console,) = [h for h in logging.getLogger().handlers if isinstance(h, PrefectConsoleHandler)]
    before = list(console.filters)
    try:
        start.print_failures_once()
        record = logging.makeLogRecord({"name": name, "msg": message})
        assert bool(console.filter(record)) == is_printed
    finally:
        console.filters[:] = before


@pytest.mark.parametrize(
    ("url", "todo", "expected"),
    [
        (None, None, "unchanged"),
        (None, "a stage", "flow"),
        ("http://127.0.0.1:4200/api", None, "flow"),
    ],
)
def test_only_a_run_that_does_something_starts_a_temporary_server(monkeypatch, url, todo, expected):
    """A team's server sees unchanged customers, too."""
    monkeypatch.setattr(start.admission, "preflight", lambda *_: "workspace")
    monkeypatch.setattr(start, "is_unchanged", lambda *_: todo is None)
    monkeypatch.setattr(start.effects, "unchanged", lambda _: "unchanged")
    monkeypatch.setattr(start, "poc_flow", lambda *_, **__: "flow")
    monkeypatch.setattr(states, "outcome_of", lambda state: state)
    monkeypatch.setattr(states, "state_of", lambda outcome: outcome)
    monkeypatch.setattr(start, "print_failures_once", lambda: None)
    monkeypatch.setattr(start, "start_server", lambda: None)
    published = []
    monkeypatch.setattr(start.publish, "after_run", lambda *given: published.append(given))
    with temporary_settings({PREFECT_API_URL: url}):
        assert start.start(SimpleNamespace(), "tiny") == expected
    is_by_the_flow = expected == "flow"
    assert published == ([] if is_by_the_flow else [("tiny", "unchanged")])


@pytest.mark.slow
def test_the_temporary_server_outlives_what_ends_the_runs_group_and_not_the_run(tmp_path):
    """It has the end of the flow to record."""
    code = """
import os, signal, sys, time
from flows.start import start_server
signal.signal(signal.SIGTERM, lambda *_: None)
server = start_server()
os.killpg(0, signal.SIGTERM)  # as `timeout` and systemd end a run
time.sleep(1)
print(server, open(f"/proc/{server}/stat").read().split()[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    pid, state = done.stdout.split()
    assert state in "RSD", done.stderr
    assert not psutil.pid_exists(int(pid))
