"""What a run has cost reaches its workers while it goes on, and decides whether they go on."""

from __future__ import annotations

import _thread
import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import ray

from turbo_vaed.costs import Budget
from turbo_vaed.distill import train
from turbo_vaed.distill.job import Job, RunCosts
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.stopping import StopDecision, Stopping
from turbo_vaed.distill.train import LatestCosts
from turbo_vaed.errors import Fault, Unreachable

pytestmark = pytest.mark.slow


def costs(
    usd: str,
    usd_per_hour: int = 1,
    may_spend_usd: str = "0.9",
    reserve_usd: str = "0",
    checkpoint_seconds: float = 3600.0,
) -> RunCosts:
    """As a driver reports them now; the warning stands at 80 %."""
    return RunCosts(
        budget=Budget(
            run_usd=Decimal(may_spend_usd),
            warn_share=Decimal("0.8"),
            reserve_usd=Decimal(reserve_usd),
        ),
        spent_usd=Decimal(usd),
        usd_per_hour=Decimal(usd_per_hour),
        now_usd_per_hour=Decimal(usd_per_hour),
        checkpoint_seconds=checkpoint_seconds,
        at=time.time(),
    )


DEAR = costs("0.9", 10)


def then_nothing(*reports: RunCosts | None) -> Iterator[RunCosts | None]:
    return itertools.chain(reports, itertools.repeat(None))


def decided(
    job: Job, reports: Iterable[RunCosts | None], *, warned: Iterable[str] = ()
) -> list[StopDecision]:
    """The decisions before and after each of 20 short steps, up to a stop."""
    news, history, found = iter(reports), [], []
    decide = Stopping(job, warned=warned, latest_costs=lambda: next(news))
    for step in range(1, 22):
        found.append(decide(history, best_psnr=20.0, validate_seconds=0.0))
        if found[-1].stopped:
            break
        history.append({"step": step, "step_seconds": 0.001})
    return found


def budget_warnings(decisions: Iterable[StopDecision]) -> list[str]:
    return [text for each in decisions for kind, text in each.warnings if kind == "budget"]


@pytest.fixture
def cheap(make_job: Any) -> Job:
    """A job that by its own clock has money for hours."""
    job: Job = make_job(budget_usd="0.90", usd_per_hour="0.0001", steps=50)
    return job


def test_a_run_stops_by_the_costs_reported_and_not_by_its_own_clock(cheap: Job) -> None:
    news = then_nothing(None, None, costs("0.5"), None, DEAR)
    events: list[dict[str, Any]] = []
    loop = Loop(
        cheap,
        on_event=events.append,
        save=lambda state: None,
        decide=Stopping(cheap, latest_costs=lambda: next(news)),
    )
    stopped, reason = loop.run()
    assert (stopped, loop.step) == ("budget", 4)
    assert "of $0.90 spent" in reason
    spent = [Decimal(e["spent_usd"]) for e in events if e["event"] == "step"]
    assert spent[0] < Decimal("0.01") and spent[1] >= Decimal("0.5")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": {"run_usd": Decimal("0.02")}}, "of $0.02 spent"),  # other runs spend too
        ({"budget": {"reserve_usd": Decimal("0.89")}}, "$0.89"),  # machines joined
        ({"refusal": "node n7: no labels"}, "node n7: no labels"),
    ],
)
def test_a_smaller_budget_a_larger_reserve_or_a_refusal_ends_a_run(
    cheap: Job, changes: dict[str, Any], reason: str
) -> None:
    last = costs("0.02")
    budget = replace(last.budget, **changes.pop("budget", {}))
    last = replace(last, budget=budget, **changes)
    found = decided(cheap, then_nothing(None, costs("0.01"), last))
    assert [each.stopped for each in found] == ["", "", "budget"]
    assert reason in found[-1].reason


def test_a_limit_that_changes_by_cents_gives_one_warning(make_job: Any) -> None:
    """Another run spends at the same time: what this one may spend is another amount each time."""
    job = make_job(budget_usd="9", usd_per_hour="0.0001")
    moving = [costs("0.85", may_spend_usd=f"1.0{cents}") for cents in "543210" * 4]
    (text,) = budget_warnings(decided(job, moving))
    assert text.startswith("$0.85 of $1.05 spent")
    assert not budget_warnings(decided(job, moving, warned=["budget"])), "a resumed run"


def test_a_raised_budget_gives_another_warning(make_job: Any) -> None:
    job = make_job(budget_usd="9", usd_per_hour="0.0001")
    reports = itertools.chain(
        [costs("0.85", may_spend_usd="1")] * 8,
        [costs("0.86", may_spend_usd="2")] * 4,
        itertools.repeat(costs("1.7", may_spend_usd="2")),
    )
    assert [text.partition(" spent")[0] for text in budget_warnings(decided(job, reports))] == [
        "$0.85 of $1.00",
        "$1.70 of $2.00",
    ]


def test_the_last_reported_time_between_checkpoints_counts(make_job: Any) -> None:
    """After a loss, say, they come more often."""
    reports = then_nothing(None, costs("0.1", checkpoint_seconds=7.0))
    assert [each.checkpoint_seconds for each in decided(make_job(), reports)[:3]] == [60, 7, 7]


def test_costs_reported_earlier_grow_with_the_time_since() -> None:
    reported = replace(costs("0.5", 3600), at=time.time() - 100)
    assert 100.5 <= reported.spent_by_now() < 102


def test_costs_reach_the_workers_and_an_unreachable_ledger_stops_no_events(
    on_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "COSTS_SECONDS", 0.1)
    calls: list[int] = []
    events: list[dict[str, Any]] = []

    def report() -> RunCosts:
        calls.append(1)
        if len(calls) == 1:
            raise Unreachable("the ledger is away")
        return DEAR

    with train._channel(events.append, report) as channel:
        latest = LatestCosts(channel)
        found, deadline = None, time.monotonic() + 120
        while found is None and time.monotonic() < deadline:
            found = latest()
            time.sleep(0.05)
        later = LatestCosts(channel)()  # of workers that begin anew: at once, and with its age
        ray.get(channel.put.remote({"event": "step"}))
    assert found is not None and replace(found, at=DEAR.at) == DEAR and len(calls) >= 2
    assert later is not None and later.spent_usd == DEAR.spent_usd
    assert later.at < time.time()
    assert events == [{"event": "step"}]


def test_what_cannot_be_reported_fails_the_training(on_ray: None) -> None:
    def fail(_event: dict[str, Any]) -> None:
        raise OSError("no space left")

    with pytest.raises(Fault, match="no space left"), train._channel(fail, None) as channel:
        ray.get(channel.put.remote({"event": "step"}))


def test_an_interrupt_reaches_the_workers_and_waits_for_their_end(
    on_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Ctrl-C of whoever runs the stage; the workers are a thread."""
    ended: list[bool] = []
    with train._channel(lambda event: None, None) as channel:
        latest = LatestCosts(channel)

        def fit() -> None:
            latest()
            threading.Timer(0.5, _thread.interrupt_main).start()
            while not latest.is_interrupted:
                latest()
                time.sleep(0.05)
            ended.append(True)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                train._run_interruptibly(fit, channel)
        finally:
            signal.signal(signal.SIGINT, before)
    assert ended == [True]
    assert "checkpoint" in capsys.readouterr().out
