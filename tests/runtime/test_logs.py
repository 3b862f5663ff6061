"""Logs as JSON: every line of a command is an object, whoever wrote it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import configs
from turbo_vaed.errors import UserError
from turbo_vaed.runtime import logs
from turbo_vaed.runtime.progress import progress

OWN = ("turbo_vaed", "flows")
Streams = tuple[io.StringIO, io.StringIO]


@pytest.fixture
def streams_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Streams]]:
    """Makes stdout and stderr those of a process that logs as JSON. Called by the test itself, for
    pytest has others while it makes fixtures."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in OWN}
    monkeypatch.setenv("TURBO_VAED_LOGS", "json")

    def replace() -> Streams:
        found = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", found[0])
        monkeypatch.setattr(sys, "stderr", found[1])
        return found

    yield replace
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_has_what_a_search_needs(streams_of: Callable[[], Streams]) -> None:
    streams = streams_of()
    logs.of_run("acme", "acme-1")
    try:
        raise ZeroDivisionError("by 0")
    except ZeroDivisionError:
        logging.getLogger("flows.poc").warning("run %s\nfailed", "acme-1", exc_info=True)
    (found,) = lines(streams[1])
    at = datetime.fromisoformat(found.pop("time"))
    assert at.utcoffset() == timedelta(0)
    assert "ZeroDivisionError: by 0" in found.pop("exception")
    assert found == {
        "level": "WARNING", "logger": "flows.poc", "message": "run acme-1\nfailed",
        "customer": "acme", "run": "acme-1",
    }  # fmt: skip


def test_what_is_printed_is_an_object_a_line(streams_of: Callable[[], Streams]) -> None:
    streams = streams_of()
    logs.of_run("acme")
    print("step 1\n\nstep 2")
    print("\r 10 %\r 20 %")
    print("no end", end="")
    logs.finish()
    assert [one["message"] for one in lines(streams[0])] == ["step 1", "step 2", " 20 %", "no end"]
    assert not sys.stdout.isatty()


def test_what_a_child_wrote_as_json_passes_as_it_is(streams_of: Callable[[], Streams]) -> None:
    streams = streams_of()
    logs.of_run("acme")
    print("from a child")
    own = streams[0].getvalue()
    print(own, end="")
    print('{"time": "but nothing of ours"}')
    found = lines(streams[0])
    assert found[0] == found[1] and found[2]["message"].startswith('{"time"')


def test_a_librarys_own_handler_is_taken_off(streams_of: Callable[[], Streams]) -> None:
    streams = streams_of()
    logs.of_run("acme")
    logging.getLogger().addHandler(logging.StreamHandler(streams[1]))  # as an import of Prefect's
    logs.of_run("acme", "acme-1")
    logging.getLogger("x").warning("once")
    (found,) = lines(streams[1])
    assert found["run"] == "acme-1"


def test_an_answer_stays_an_answer(streams_of: Callable[[], Streams]) -> None:
    streams = streams_of()
    logs.of_command()
    print("a table")
    with progress("customers", 2) as update:
        update(2, "")
    assert streams[0].getvalue() == "a table\n"
    (found,) = lines(streams[1])
    assert found["message"] == "customers 2/2"


def test_text_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr, list(logging.getLogger().handlers)
    for value in ("", "text"):
        monkeypatch.setenv("TURBO_VAED_LOGS", value)
        logs.of_command()
        logs.of_run("acme")
    assert before == (sys.stdout, sys.stderr, list(logging.getLogger().handlers))
    monkeypatch.setenv("TURBO_VAED_LOGS", "xml")
    with pytest.raises(UserError, match="xml"):
        logs.of_command()


@pytest.mark.slow
def test_every_line_of_a_command_parses(tmp_path: Path) -> None:
    configs.copy_to(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "turbo_vaed.cli", "stage", "no-such-stage", "demo"],
        env=os.environ | {"TURBO_VAED_ROOT": str(tmp_path), "TURBO_VAED_LOGS": "json"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert done.returncode == 2
    (error,) = [one for one in found if one["level"] == "ERROR"]
    assert error["customer"] == "demo" and "no-such-stage" in error["message"]
