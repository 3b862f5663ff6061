"""What a run has cost reaches its workers while it goes on, and is believed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import ray

from turbo_vaed.distill import train
from turbo_vaed.distill.job import Paid
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.worker import _News
from turbo_vaed.errors import Unreachable

DEAR = Paid(usd=Decimal("0.9"), usd_per_hour=Decimal(10))


def test_a_run_stops_by_what_it_is_told_and_not_by_its_own_clock(make_job: Any) -> None:
    """On its own it would have money for hours."""
    news = iter([None, None, Paid(usd=Decimal("0.5"), usd_per_hour=Decimal(1)), None, DEAR])
    events: list[dict[str, Any]] = []
    loop = Loop(
        make_job(budget_usd="0.90", usd_per_hour="0.0001", steps=50),
        tell=events.append,
        save=lambda state: None,
        paid=lambda: next(news),
    )
    stopped, reason = loop.run()
    assert (stopped, loop.step) == ("budget", 4)
    assert "$0.90 of $0.90 spent" in reason
    spent = [Decimal(e["spent_usd"]) for e in events if e["event"] == "step"]
    assert spent[1] < Decimal("0.01") and spent[2] >= Decimal("0.5")


@pytest.fixture
def on_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_driver_tells_and_a_ledger_that_is_away_stops_no_letters(
    on_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PAY_SECONDS", 0.1)
    asked: list[int] = []
    taken: list[dict[str, Any]] = []

    def paid() -> Paid:
        asked.append(1)
        if len(asked) == 1:
            raise Unreachable("the ledger is away")
        return DEAR

    with train._letters(taken.append, paid) as letters:
        news = _News(letters)
        found, deadline = None, time.monotonic() + 120
        while found is None and time.monotonic() < deadline:
            found = news()
            time.sleep(0.05)
        ray.get(letters.put.remote({"event": "step"}))
    assert found == DEAR and len(asked) >= 2
    assert taken == [{"event": "step"}]
