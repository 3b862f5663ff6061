"""Budgets that runs share: what they leave to a run, and when nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.costs import (
    Charge,
    Ledger,
    Limits,
    SpendingLimit,
    require_budget_left,
    spending_limit,
)
from turbo_vaed.costs.months import Month
from turbo_vaed.errors import BudgetRefused

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def charge(run: str, customer: str, usd: str, at: datetime = NOW) -> Charge:
    return Charge(
        run=run,
        customer=customer,
        stage="distill",
        resource="node",
        market="local",
        quantity=Decimal(usd),
        unit="node-second",
        unit_price_usd=Decimal(1),
        amount_usd=Decimal(usd),
        started_at=at,
        ended_at=at + timedelta(seconds=1),
        useful="useful",
        price_source="a test",
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(
            [
                charge("a-1", "a", "10"),
                charge("a-2", "a", "5"),
                charge("b-1", "b", "20"),
                charge("a-0", "a", "500", at=datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC)),
            ]
        )
        yield ledger


def of(
    ledger: Ledger, customer: str | None, total: str | None, at: datetime = NOW
) -> SpendingLimit:
    limits = Limits(
        run_usd=Decimal(95),
        customer_month_usd=None if customer is None else Decimal(customer),
        total_month_usd=None if total is None else Decimal(total),
    )
    return spending_limit(ledger, limits, run="a-2", customer="a", at=at)


def test_the_nearest_limit_counts_and_is_named(ledger: Ledger) -> None:
    assert of(ledger, None, None) == SpendingLimit(
        usd=Decimal(95), by="budget.run_usd of $95.00", is_own_budget=True
    )
    found = of(ledger, "30", None)
    assert found.usd == 20, "what the run itself has spent is its own"
    assert not found.is_own_budget
    assert "budget.customer_month_usd of $30.00" in found.by and "$10.00" in found.by
    found = of(ledger, "30", "45")
    assert found.usd == 15 and "total_month_usd" in found.by


def test_a_used_up_month_refuses_a_run(ledger: Ledger) -> None:
    require_budget_left(of(ledger, "10.01", None))
    for limits in (("10", None), (None, "30"), ("9", None)):
        with pytest.raises(BudgetRefused, match=r"_month_usd.*in 2026-11"):
            require_budget_left(of(ledger, *limits))
    assert of(ledger, "10", None, at=NOW + timedelta(days=7)).usd == 15, "December, and 5 spent"


def test_only_a_months_limit_is_worth_waiting_for(ledger: Ledger) -> None:
    for found, may_wait in ((of(ledger, None, None), False), (of(ledger, "30", None), True)):
        with pytest.raises(BudgetRefused) as refused:
            require_budget_left(found, spent_usd=found.usd)
        assert ("wait for the next month" in str(refused.value)) == may_wait


def test_the_runs_own_spend_reduces_what_is_left(ledger: Ledger) -> None:
    found = of(ledger, "30", None)
    require_budget_left(found, spent_usd=Decimal("19.99"))
    with pytest.raises(BudgetRefused, match=r"customer_month_usd.*this run has spent \$20\.00"):
        require_budget_left(found, spent_usd=Decimal(20))


def test_a_run_over_the_end_of_a_month_takes_its_spend_with_it(ledger: Ledger) -> None:
    """It has spent 5 in November; in December it may spend the month's 30 on top."""
    assert of(ledger, "30", None, at=datetime(2026, 12, 1, tzinfo=UTC)).usd == 35


@given(st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 1), timezones=st.just(UTC)))
def test_every_moment_lies_in_its_month(at: datetime) -> None:
    month = Month.of(at)
    assert month.since <= at < month.until
    assert Month.of(month.until).since == month.until
    assert timedelta(days=28) <= month.until - month.since <= timedelta(days=31)
