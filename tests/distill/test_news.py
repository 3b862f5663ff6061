"""What a run has cost reaches its workers while it goes on, and is believed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import ray

from turbo_vaed.costs import Budget
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoint import Checkpoint
from turbo_vaed.distill.job import RunCosts
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.worker import _News
from turbo_vaed.errors import Unreachable


def costs(
    usd: str,
    usd_per_hour: int = 1,
    may_spend_usd: str = "0.9",
    reserve_usd: str = "0",
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
        checkpoint_seconds=3600.0,
        at=time.time(),
    )


DEAR = costs("0.9", 10)


def test_a_run_stops_by_what_it_is_told_and_not_by_its_own_clock(make_job: Any) -> None:
    """On its own it would have money for hours."""
    news = iter(
        [
            None,
            None,
            costs("0.5"),
            None,
            DEAR,
        ]
    )
    events: list[dict[str, Any]] = []
    loop = Loop(
        make_job(budget_usd="0.90", usd_per_hour="0.0001", steps=50),
        tell=events.append,
        save=lambda state: None,
        costs=lambda: next(news),
    )
    stopped, reason = loop.run()
    assert (stopped, loop.step) == ("budget", 4)
    assert "$0.90 of $0.90 spent" in reason
    spent = [Decimal(e["spent_usd"]) for e in events if e["event"] == "step"]
    assert spent[1] < Decimal("0.01") and spent[2] >= Decimal("0.5")


def test_a_run_stops_where_others_have_used_up_the_months_budget(make_job: Any) -> None:
    news = iter([None, costs("0.01"), costs("0.02", may_spend_usd="0.02")])
    loop = Loop(
        make_job(budget_usd="0.90", usd_per_hour="0.0001", steps=50),
        tell=lambda event: None,
        save=lambda state: None,
        costs=lambda: next(news),
    )
    stopped, reason = loop.run()
    assert (stopped, loop.step) == ("budget", 2)
    assert "$0.02 of $0.02 spent" in reason


def warned(events: list[dict[str, Any]]) -> list[str]:
    return [e["text"] for e in events if e["event"] == "warning" and e["kind"] == "budget"]


def test_a_months_limit_that_moves_by_cents_is_warned_of_once(make_job: Any) -> None:
    """Another run spends beside: what this one may spend is another amount each time."""
    job = make_job(budget_usd="9", usd_per_hour="0.0001", steps=20)
    events: list[dict[str, Any]] = []
    states: list[Checkpoint] = []

    def run(resume: Checkpoint | None = None) -> list[str]:
        events.clear()
        news = (costs("0.85", may_spend_usd=f"1.0{cents}") for cents in itertools.cycle("543210"))
        loop = Loop(
            job, tell=events.append, save=states.append, resume=resume, costs=lambda: next(news)
        )
        assert loop.run()[0] == "finished"
        return warned(events)

    (text,) = run()
    assert text.startswith("$0.85 of $1.05 spent")
    assert not run(next(state for state in states if 9 < state.step < 20)), "it is known"


def test_a_budget_that_was_raised_is_warned_of_again(make_job: Any) -> None:
    news = itertools.chain(
        [costs("0.85", may_spend_usd="1")] * 8,
        [costs("0.86", may_spend_usd="2")] * 4,
        itertools.repeat(costs("1.7", may_spend_usd="2")),
    )
    events: list[dict[str, Any]] = []
    Loop(
        make_job(budget_usd="9", usd_per_hour="0.0001", steps=20),
        tell=events.append, save=lambda state: None, costs=lambda: next(news),
    ).run()  # fmt: skip
    assert [text.partition(" spent")[0] for text in warned(events)] == [
        "$0.85 of $1.00", "$1.70 of $2.00"
    ]  # fmt: skip


def test_a_run_stops_where_machines_that_joined_will_have_to_be_paid_to_its_end(
    make_job: Any,
) -> None:
    news = iter([None, costs("0.01", reserve_usd="0.2"), costs("0.02", reserve_usd="0.89")])
    loop = Loop(
        make_job(budget_usd="0.90", usd_per_hour="0.0001", steps=50),
        tell=lambda event: None,
        save=lambda state: None,
        costs=lambda: next(news),
    )
    stopped, reason = loop.run()
    assert (stopped, loop.step) == ("budget", 2)
    assert "eat into the $0.89 kept back" in reason


def test_a_node_without_a_price_ends_the_run_with_its_reason(make_job: Any) -> None:
    unknown = replace(costs("0.01"), refusal="node n7 bears no labels")
    news = iter([None, None, unknown])
    loop = Loop(
        make_job(steps=50), tell=lambda event: None, save=lambda state: None,
        costs=lambda: next(news),
    )  # fmt: skip
    assert loop.run() == ("budget", "node n7 bears no labels")
    assert loop.step == 2


def test_costs_reported_a_while_ago_count_with_the_time_since() -> None:
    reported = replace(costs("0.5", 3600), at=time.time() - 100)
    assert 100.5 <= reported.spent_by_now() < 102


@pytest.fixture
def on_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_driver_tells_and_a_ledger_that_is_away_stops_no_letters(
    on_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PAY_SECONDS", 0.1)
    asked: list[int] = []
    taken: list[dict[str, Any]] = []

    def tell() -> RunCosts:
        asked.append(1)
        if len(asked) == 1:
            raise Unreachable("the ledger is away")
        return DEAR

    with train._letters(taken.append, tell) as letters:
        news = _News(letters)
        found, deadline = None, time.monotonic() + 120
        while found is None and time.monotonic() < deadline:
            found = news()
            time.sleep(0.05)
        later = _News(letters)()  # of workers that begin anew: at once, and with its age
        ray.get(letters.put.remote({"event": "step"}))
    assert found is not None and replace(found, at=DEAR.at) == DEAR and len(asked) >= 2
    assert later is not None and later.spent_usd == DEAR.spent_usd
    assert found.at <= later.at < time.time()
    assert taken == [{"event": "step"}]
