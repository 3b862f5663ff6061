"""`turbo-vaed runs`: what goes on, and stopping it from another process."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace

import pytest

from tests import configs
from turbo_vaed import cli
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.runtime.processes import Process

ELSEWHERE = Process(host="another machine", machine="m", number=7, began=1.0)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    configs.copy_to(tmp_path)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # nothing answers

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", "runs", *arguments])
        return cli.main(), *capsys.readouterr()

    return run


@pytest.fixture
def open_runs(tmp_path):
    with OpenRuns.open(f"sqlite:///{tmp_path}/ledger.db") as found:
        yield found


def test_runs_are_listed_while_they_go_on(call, open_runs):
    assert json.loads(call("list", "--format", "json")[1]) == []
    mine, _ = open_runs.acquire("acme", ELSEWHERE)
    open_runs.beat(mine, run="acme-1", step="distill")
    (row,) = json.loads(call("list", "--format", "json")[1])
    assert (row["customer"], row["state"], row["run"], row["step"]) == (
        "acme", "running", "acme-1", "distill",
    )  # fmt: skip
    assert "another machine" in row["by"]
    open_runs.end(mine)
    assert json.loads(call("list", "--format", "json")[1]) == []
    (row,) = json.loads(call("list", "--all", "--format", "json")[1])
    assert row["state"] == "ended"


def test_an_abort_waits_until_the_run_has_ended(call, open_runs):
    mine, _ = open_runs.acquire("acme", ELSEWHERE)

    def end_when_asked():
        while not open_runs.beat(mine, run="acme-1", step="gate").abort_by:
            threading.Event().wait(0.05)
        open_runs.end(mine)

    thread = threading.Thread(target=end_when_asked)
    thread.start()
    code, out, _ = call("abort", "acme")
    thread.join()
    assert code == 0 and "asked to stop" in out and "has ended" in out


def test_a_run_that_does_not_end_is_a_fault(call, open_runs):
    open_runs.acquire("acme", ELSEWHERE)
    code, _, err = call("abort", "acme", "--wait", "0.1")
    assert code == 3 and "runs list" in err


def test_there_is_nothing_to_abort(call):
    code, _, err = call("abort", "acme")
    assert code == 2 and "no run of acme" in err


def test_all_dead_runs_are_settled_and_no_living_one(call, open_runs):
    assert "no run has died" in call("settle")[1]
    this = Process.this()
    open_runs.acquire("dead", replace(this, began=this.began - 1))
    open_runs.acquire("alive", this)
    code, out, _ = call("settle")
    assert code == 0 and "of dead" in out and "alive" not in out
    assert {one.customer: one.state for one in open_runs.all()} == {
        "alive": "running", "dead": "ended",
    }  # fmt: skip


def test_a_dead_run_is_settled_also_where_mlflow_is_away(call, open_runs):
    gone = Process.of(Process.this().number)
    open_runs.acquire("acme", replace(gone, began=gone.began - 1))
    code, out, _ = call("abort", "acme")
    assert code == 0 and "had died" in out
    assert open_runs.of("acme").state == "ended"
