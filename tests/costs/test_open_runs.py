"""Who works for a customer: one run at a time, over processes and machines, on both databases."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from turbo_vaed.costs.db.engine import connect, writing
from turbo_vaed.costs.db.schema import OPEN_RUNS
from turbo_vaed.costs.open_runs import DEAD_AFTER, OpenRun, OpenRuns
from turbo_vaed.errors import Refused
from turbo_vaed.runtime.processes import Process

ELSEWHERE = Process(host="another machine", machine="m", number=1, began=1.5)


@pytest.fixture
def runs(url):
    with OpenRuns.open(url) as found:
        yield found


def make_unseen(url: str, customer: str, *, seconds: float) -> None:
    """As if the customer's run had been seen so long ago."""
    engine = connect(url)
    with writing(engine) as connection:
        seen = connection.execute(sa.select(OPEN_RUNS.c.seen_at)).scalar_one()
        values = {"seen_at": seen - timedelta(seconds=seconds)}
        connection.execute(
            OPEN_RUNS.update().where(OPEN_RUNS.c.customer == customer).values(**values)
        )
    engine.dispose()


def test_a_customer_has_one_run_at_a_time(runs):
    mine, _ = runs.acquire("acme", Process.this())
    assert mine.state == "running"
    with pytest.raises(Refused, match="runs abort acme"):
        runs.acquire("acme", ELSEWHERE)
    assert runs.acquire("other", ELSEWHERE)[0].state == "running"
    with pytest.raises(Refused):
        runs.require_free("acme")
    assert runs.end(mine)
    runs.require_free("acme")
    assert runs.of("acme").state == "ended"
    assert runs.acquire("acme", ELSEWHERE)[0].token > mine.token


def test_a_run_with_heartbeats_keeps_its_customer_and_says_what_it_does(runs, url):
    mine, _ = runs.acquire("acme", ELSEWHERE)
    make_unseen(url, "acme", seconds=DEAD_AFTER.total_seconds() - 30)
    seen = runs.beat(mine, run="acme-1", step="distill")
    assert (seen.run, seen.step, seen.state) == ("acme-1", "distill", "running")
    make_unseen(url, "acme", seconds=DEAD_AFTER.total_seconds() - 30)
    assert runs.of("acme").state == "running"
    with pytest.raises(Refused, match=r"acme-1.*another machine.*distill"):
        runs.acquire("acme", Process.this())


def test_a_run_without_heartbeats_is_dead_and_finds_out_when_it_is_back(runs, url):
    """The token keeps apart a run that was only cut off, and the one that took its place."""
    cut_off, _ = runs.acquire("acme", ELSEWHERE)
    make_unseen(url, "acme", seconds=DEAD_AFTER.total_seconds() + 30)
    assert runs.of("acme").state == "dead"
    mine, dead = runs.acquire("acme", Process.this())
    assert mine.token > cut_off.token
    assert dead is not None and dead.token == cut_off.token, "to be settled, by this one alone"
    assert runs.beat(cut_off, run="acme-1", step="distill") is None
    assert not runs.end(cut_off)
    found = runs.of("acme")
    assert (found.state, found.token, found.step) == ("running", mine.token, "")


def test_a_process_of_this_machine_that_has_ended_is_dead_at_once(runs):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_child = Process.of(child.pid)
    assert not of_child.has_ended()
    runs.acquire("acme", of_child)
    child.communicate()
    assert runs.of("acme").state == "dead"
    reused = replace(of_child, number=Process.this().number)
    assert reused.has_ended(), "another process with the number of one that has ended"
    assert not replace(of_child, machine="m").has_ended(), "nothing is known of it"


def test_an_abort_is_seen_by_the_run_and_by_nobody_after_it(runs):
    assert runs.abort("acme", "ann") is None
    mine, _ = runs.acquire("acme", Process.this())
    assert runs.abort("acme", "ann").state == "aborting"
    assert runs.beat(mine, run="acme-1", step="gate").abort_by == "ann"
    runs.end(mine)
    assert runs.abort("acme", "bob") is None
    assert runs.acquire("acme", Process.this())[0].abort_by == ""


def test_of_many_that_take_a_customer_at_once_one_has_it(url):
    got: list[OpenRun | Refused] = []

    def take() -> None:
        with OpenRuns.open(url) as found:
            try:
                got.append(found.acquire("acme", ELSEWHERE)[0])
            except Refused as refused:
                got.append(refused)

    with OpenRuns.open(url):
        pass  # the tables are made
    threads = [threading.Thread(target=take) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(type(one).__name__ for one in got) == ["Busy"] * 7 + ["OpenRun"]


def test_all_runs_are_listed_by_customer(runs):
    for customer in ("b", "a"):
        runs.acquire(customer, ELSEWHERE)
    assert [one.customer for one in runs.all()] == ["a", "b"]


def test_a_stage_works_for_the_run_that_holds_its_customer(runs):
    by_hand = runs.require_held("acme", None)
    assert by_hand > 1_000_000_000, "above all tokens of a ledger that was lost"
    first, _ = runs.acquire("acme", Process.this())
    assert runs.require_held("acme", first.token) == first.token
    with pytest.raises(Refused):
        runs.require_held("acme", None)
    runs.end(first)
    assert runs.require_held("acme", None) >= first.token >= by_hand
    runs.acquire("acme", ELSEWHERE)
    with pytest.raises(Refused):
        runs.require_held("acme", first.token)


def test_only_the_run_that_holds_a_customer_replaces_what_it_leaves(runs):
    assert runs.state_of("acme") is None
    first, _ = runs.acquire("acme", Process.this())
    revision = runs.save_state(first, {"run.json": "{}"})
    runs.end(first)
    second, _ = runs.acquire("acme", ELSEWHERE)
    assert runs.save_state(first, {"run.json": "stale"}) is None
    found = runs.state_of("acme")
    assert (found.revision, found.files) == (revision, {"run.json": "{}"})
    assert runs.save_state(second, {"dvc.lock": "a"}) != revision
    assert runs.state_of("acme").files == {"dvc.lock": "a"}
    assert runs.state_of("other") is None
