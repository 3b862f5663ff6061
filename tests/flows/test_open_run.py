"""A run shows that it lives, stops where somebody asks for it, and what died is settled."""

from __future__ import annotations

import threading
from dataclasses import replace
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
    monkeypatch.setattr(open_run, "BEAT_SECONDS", 0.01)
    mine, _ = open_runs.acquire("acme", Process.this())
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
    (mine, _), interrupts = open_runs.acquire("acme", Process.this()), []
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
        open_runs.acquire("acme", Process.this())
    heartbeat.poll()
    heartbeat.poll()
    assert interrupts == [how]
    assert {"abort": "ann", "Prefect": "Prefect", "taken": "another run"}[how] in (
        heartbeat.stopped_by
    )
    assert heartbeat.is_lost == (how == "taken")


def test_a_run_goes_on_where_the_ledger_does_not_answer(open_runs, monkeypatch):
    """Nobody else can take its customer there either."""
    monkeypatch.setattr(open_run, "BEAT_SECONDS", 0.01)
    (mine, _), interrupts, tries = open_runs.acquire("acme", Process.this()), [], []

    def beat(*_, **__):
        tries.append(1)
        if len(tries) == 3:
            is_third.set()
        raise Unreachable("no answer")

    is_third = threading.Event()
    monkeypatch.setattr(open_runs, "beat", beat)
    with heartbeat_of(open_runs, mine, interrupt=lambda: interrupts.append(1)):
        assert is_third.wait(30), "it tries again"
    assert not interrupts


def test_the_main_thread_is_interrupted_as_by_a_signal(open_runs):
    from turbo_vaed.runtime.interrupts import signals_interrupt

    mine, _ = open_runs.acquire("acme", Process.this())
    open_runs.abort("acme", "ann")
    heartbeat = Heartbeat(open_runs, mine, Reached(), is_cancelled=lambda: False)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        thread = threading.Thread(target=heartbeat.poll)
        thread.start()
        thread.join()
        for _ in range(1000):  # a signal arrives between two instructions
            threading.Event().wait(0.01)


def test_a_run_that_ends_by_itself_is_not_interrupted(open_runs):
    """As while it writes the report of a failure, or is over."""
    (mine, _), interrupts = open_runs.acquire("acme", Process.this()), []
    heartbeat = heartbeat_of(open_runs, mine, interrupt=lambda: interrupts.append(1))
    open_runs.abort("acme", "ann")
    heartbeat.end_interrupts()
    heartbeat.poll()
    assert not interrupts and not heartbeat.stopped_by


def test_an_interrupt_that_ends_nothing_is_repeated(open_runs, monkeypatch):
    (mine, _), interrupts = open_runs.acquire("acme", Process.this()), []
    heartbeat = heartbeat_of(open_runs, mine, interrupt=lambda: interrupts.append(1))
    open_runs.abort("acme", "ann")
    heartbeat.poll()
    heartbeat.poll()
    assert len(interrupts) == 1, "a stage is saving"
    monkeypatch.setattr(open_run, "INTERRUPT_AGAIN_SECONDS", 0.0)
    heartbeat.poll()
    assert len(interrupts) == 2


def test_what_a_dead_run_left_is_settled_by_the_next(open_runs, url, store):
    settings = SimpleNamespace(ledger_url=url, mlflow_tracking_uri=store)
    this = Process.this()
    dead, _ = open_runs.acquire("acme", replace(this, began=this.began - 1))
    open_runs.beat(dead, run="acme-1", step="distill")
    with Ledger.open(url) as ledger:
        ledger.record_reservation("acme-1", "acme", Decimal(5), at=datetime.now(UTC))
        ledger.record_reservation("other-1", "other", Decimal(5), at=datetime.now(UTC))
    mlflow = open_tracking(store)
    experiment = experiment_id(mlflow, store, "acme")
    made = {
        name: mlflow.create_run(experiment, tags={tag: run}).info.run_id
        for name, tag, run in (
            ("live", "turbo_vaed.run_id", "acme-1"),
            ("registering", "turbo_vaed_run_id", "acme-1"),
            ("of another", "turbo_vaed.run_id", "acme-2"),
        )
    }
    with open_run.acquired(settings, "acme", Reached()):
        found = open_runs.of("acme")
        assert (found.state, found.holder) == ("running", this) and found.token > dead.token
    with Ledger.open(url) as ledger:
        assert [one.run for one in ledger.reservations(at=datetime.now(UTC))] == ["other-1"]
    status = {name: mlflow.get_run(made[name]).info.status for name in made}
    assert status == {"live": "KILLED", "registering": "KILLED", "of another": "RUNNING"}
    assert open_runs.of("acme").state == "ended"


def test_a_machine_elsewhere_may_still_cost_what_its_run_reserved(open_runs, url, store):
    settings = SimpleNamespace(ledger_url=url, mlflow_tracking_uri=store)
    elsewhere = Process(host="another machine", machine="m", number=1, began=0.0)
    mine, _ = open_runs.acquire("acme", elsewhere)
    found = open_runs.beat(mine, run="acme-1", step="distill")
    with Ledger.open(url) as ledger:
        ledger.record_reservation("acme-1", "acme", Decimal(5), at=datetime.now(UTC))
    open_run.settle(settings, found)
    with Ledger.open(url) as ledger:
        assert [one.run for one in ledger.reservations(at=datetime.now(UTC))] == ["acme-1"]


def test_outside_of_a_flow_nobody_asks_prefect(monkeypatch):
    """Its client would start a server, which nobody ends."""
    monkeypatch.setattr(open_run, "get_client", lambda **_: pytest.fail("asked"))
    assert not open_run.is_cancelled("")
