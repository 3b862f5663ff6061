"""What a stage prints, in the logs of its run in Prefect."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import dvc, stage_log
from turbo_vaed.config import pipeline
from turbo_vaed.runtime.logs import JsonFormatter

PRINTS = """\
import sys, time
print("training on 3 clips")
for done in range(50):
    print(f"\\rstep {done}", end="", flush=True)
print("\\rstep 50", flush=True)
sys.stdout.buffer.write(b"\\x1b[31ma colour\\x1b[0m \\xff \\x00 in it\\n")
print("error: " + "x" * 5000, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_the_output_of_a_stage_is_in_prefect_once_and_on_the_console_once(tmp_path, capfd):
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "stage.py").write_text(PRINTS)
    path = pipeline.folder(tmp_path, "tiny") / "dvc.yaml"
    path.parent.mkdir(parents=True)
    stage = {"wdir": "../..", "cmd": f"{sys.executable} stage.py"}
    path.write_text(yaml.safe_dump({"stages": {"clip": stage}}))
    seen = []

    @task
    def run_stage():
        seen.append((flow_run.id, task_run.id))
        dvc.reproduce(tmp_path, "tiny", "clip", environment={}, timeout_seconds=60)

    @flow
    def run():
        run_stage()

    run()
    ((flow_id, task_id),) = seen
    with get_client(sync_client=True) as client:
        logs = [
            one
            for one in client.read_logs(LogFilter(flow_run_id={"any_": [flow_id]}))
            if one.name == "stage.clip"
        ]
    assert {str(one.task_run_id) for one in logs} == {task_id}
    texts = [one.message for one in logs]
    assert texts.count("training on 3 clips") == 1
    assert [text for text in texts if text.startswith("step")] == ["step 50"], "no redrawn bar"
    assert texts.count("a colour \ufffd  in it") == 1
    (error,) = (one for one in logs if one.message.startswith("error: x"))
    assert error.level == 40 and len(error.message) < 2100
    assert capfd.readouterr().out.count("training on 3 clips") == 1


@pytest.fixture
def in_a_task(monkeypatch):
    """As Prefect's runtime lets tests pretend."""
    for name in ("FLOW_RUN", "TASK_RUN"):
        monkeypatch.setenv(f"PREFECT__RUNTIME__{name}__ID", str(uuid.uuid4()))
    monkeypatch.setattr(stage_log, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(stage_log, "AGAIN_SECONDS", 0.02)


@pytest.fixture
def api():
    """An HTTP server in the place of Prefect's, which first is out of order: its URL, and the
    messages that it has taken, and an event for the first of them."""
    taken, refusals, is_up = [], iter([503, 500]), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # for a token, which old servers do not know
            self.send_error(404)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = next(refusals, 201)
            if status == 201:
                taken.extend(line["message"] for line in body)
                is_up.set()
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{found.server_port}/api"}):
            yield taken, is_up
        found.shutdown()


@pytest.mark.usefixtures("in_a_task")
def test_lines_wait_for_a_server_that_comes_back(api):
    taken, is_up = api
    with stage_log.opened("clip") as record:
        for number in range(1200):
            record(f"line {number}\n")
        assert is_up.wait(60)
    assert taken == [f"line {number}" for number in range(1200)]


@pytest.mark.usefixtures("in_a_task")
def test_a_stage_that_prints_without_end_is_cut_and_its_end_is_kept(api, monkeypatch):
    taken, is_up = api
    monkeypatch.setattr(stage_log, "MOST_LINES", 50)
    with stage_log.opened("clip") as record:
        for number in range(1000):
            record(f"line {number}\n")
        assert is_up.wait(60)
    assert taken[:50] == [f"line {number}" for number in range(50)]
    assert taken[50].startswith("750 lines")
    assert taken[51:] == [f"line {number}" for number in range(800, 1000)]


@pytest.mark.usefixtures("in_a_task")
def test_a_server_that_never_answers_costs_a_stage_nothing(monkeypatch, caplog):
    monkeypatch.setattr(stage_log, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(stage_log, "MOST_LINES", 2500)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}), stage_log.opened("clip") as record:
            for number in range(3_000):
                record(f"line {number}\n")
    assert "2201 lines of clip did not reach Prefect" in caplog.text, "no more than that is kept"


def test_without_a_task_or_a_server_nothing_is_sent(api):
    with stage_log.opened("clip") as record:
        record("a line\n")
    with temporary_settings({PREFECT_API_URL: None}), stage_log.opened("clip") as record:
        record("a line\n")
    assert not api[0]


@pytest.mark.usefixtures("in_a_task")
def test_of_a_line_that_is_an_object_its_message_is_sent(api):
    """Where logs are JSON, a stage prints objects."""
    taken, is_up = api
    record_of = logging.LogRecord("stderr", logging.ERROR, "", 0, "error: no videos", (), None)
    with stage_log.opened("clip") as record:
        record(JsonFormatter().format(record_of) + "\n")
        assert is_up.wait(60)
    assert taken == ["error: no videos"]
