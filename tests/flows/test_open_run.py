"""A run is seen while it lives, stops when it is told to, and leaves nothing open that died."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest

from flows import open_run
from flows.open_run import Heartbeat, Reached
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.errors import Unreachable
from turbo_vaed.registry.client import experiment_id, open_tracking
from turbo_vaed.runtime.processes import Process


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def open_runs(url):
    with OpenRuns.open(url) as found:
        yield found


def heartbeat_of(open_runs, mine, **given):
    reached = Reached(run="acme-1", step="distill")
    given = {"is_cancelled": lambda: False, "interrupt": lambda: None} | given
    return Heartbeat(open_runs, mine, reached, **given)


def test_a_run_shows_what_it_does_until_it_ends(open_runs, monkeypatch):
    monkeypatch.setattr(open_run, "SEE_SECONDS", 0.01)
    mine = open_runs.take("acme", Process.this())
    seen = threading.Event()

    def is_cancelled():
        seen.set()
        return False

    with heartbeat_of(open_runs, mine, is_cancelled=is_cancelled):
        assert seen.wait(30)
        found = open_runs.of("acme")
        assert (found.run, found.step, found.state) == ("acme-1", "distill", "running")
    assert open_runs.of("acme").state == "ended"


@pytest.mark.parametrize("how", ["abort", "Prefect", "taken"])
def test_a_run_is_interrupted_once_and_says_by_whom(open_runs, how):
    mine, interrupts = open_runs.take("acme", Process.this()), []
    heartbeat = heartbeat_of(
        open_runs,
        mine,
        is_cancelled=lambda: how == "Prefect",
        interrupt=lambda: interrupts.append(how),
    )
    if how == "abort":
        open_runs.abort("acme", "ann")
    if how == "taken":  # as by a run that found it dead
        open_runs.end(mine)
        open_runs.take("acme", Process.this())
    heartbeat.look()
    heartbeat.look()
    assert interrupts == [how]
    assert {"abort": "ann", "Prefect": "Prefect", "taken": "another run"}[how] in (
        heartbeat.stopped_by
    )
    assert heartbeat.is_lost == (how == "taken")


def test_a_run_goes_on_where_the_ledger_does_not_answer(open_runs, monkeypatch):
    """Nobody else can take its customer there either."""
    monkeypatch.setattr(open_run, "SEE_SECONDS", 0.01)
    mine, interrupts, tried = open_runs.take("acme", Process.this()), [], threading.Event()

    def see(*_, **__):
        tried.set()
        raise Unreachable("no answer")

    monkeypatch.setattr(open_runs, "see", see)
    with heartbeat_of(open_runs, mine, interrupt=lambda: interrupts.append(1)):
        assert tried.wait(30)
    assert not interrupts


def test_the_main_thread_is_interrupted_as_by_a_signal(open_runs):
    from turbo_vaed.runtime.interrupts import signals_interrupt

    mine = open_runs.take("acme", Process.this())
    open_runs.abort("acme", "ann")
    heartbeat = Heartbeat(open_runs, mine, Reached(), is_cancelled=lambda: False)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        thread = threading.Thread(target=heartbeat.look)
        thread.start()
        thread.join()
        for _ in range(1000):  # a signal arrives between two instructions
            threading.Event().wait(0.01)


def test_what_a_dead_run_left_is_settled(open_runs, url, store):
    settings = SimpleNamespace(ledger_url=url, mlflow_tracking_uri=store)
    dead = open_runs.take("acme", Process(host="another machine", number=1, began=0.0))
    open_runs.see(dead, run="acme-1", step="distill")
    dead = open_runs.of("acme")
    with Ledger.open(url) as ledger:
        ledger.record_reservation("acme-1", "acme", Decimal(5), at=datetime.now(UTC))
        ledger.record_reservation("other-1", "other", Decimal(5), at=datetime.now(UTC))
    mlflow = open_tracking(store)
    experiment = experiment_id(mlflow, store, "acme")
    made = {
        run: mlflow.create_run(experiment, tags={"turbo_vaed.run_id": run}).info.run_id
        for run in ("acme-1", "acme-2")
    }
    open_run.settle(settings, open_runs, dead)
    with Ledger.open(url) as ledger:
        assert [one.run for one in ledger.reservations(at=datetime.now(UTC))] == ["other-1"]
    status = {run: mlflow.get_run(made[run]).info.status for run in made}
    assert status == {"acme-1": "KILLED", "acme-2": "RUNNING"}
    assert open_runs.of("acme").state == "ended"
