from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turbo_vaed.costs import (
    Budget,
    RunReservation,
    Spending,
    SpendingLimit,
    check_start,
    decide,
)
from turbo_vaed.costs.money import AMOUNT_QUANTUM
from turbo_vaed.errors import BudgetRefused, UserError

usd = st.decimals(min_value=0, max_value=100, places=6)


def budget(run: str = "10", warn: str = "0.8", reserve: str = "1") -> Budget:
    return Budget(run_usd=Decimal(run), warn_share=Decimal(warn), reserve_usd=Decimal(reserve))


@pytest.mark.parametrize(
    ("spent", "seconds", "action"),
    [
        ("0", 1.0, "continue"),
        ("6.9", 1.0, "continue"),
        ("7", 1.0, "warn"),  # 7 + 1 reaches 80 %
        ("8", 1.0, "warn"),  # 8 + 1 + the reserve is the budget, and no more
        ("8.000001", 1.0, "stop"),
        ("8", 1.0000001, "stop"),
        ("9", 0.0, "warn"),
        ("9.5", 0.0, "stop"),  # the reserve is being eaten
    ],
)
def test_decide_at_a_dollar_a_second(spent: str, seconds: float, action: str) -> None:
    decision = decide(
        budget(),
        spent_usd=Decimal(spent),
        rate_usd_per_second=Decimal(1),
        next_step_seconds=seconds,
    )
    assert decision.action == action
    assert (decision.spent_usd, decision.left_usd) == (Decimal(spent), 9 - Decimal(spent))
    assert "of $10.00 spent" in decision.reason


@settings(deadline=None)
@given(
    run=st.decimals(min_value="0.000001", max_value=100, places=6),
    reserve=usd,
    before=usd,
    rate=st.decimals(min_value=0, max_value=1, places=8),
    most_seconds=st.floats(0, 1000),
    shares=st.lists(st.floats(0, 1), max_size=100),
)
def test_spend_and_reserve_never_pass_the_budget(
    run: Decimal,
    reserve: Decimal,
    before: Decimal,
    rate: Decimal,
    most_seconds: float,
    shares: list[float],
) -> None:
    plan = Budget(run_usd=run, warn_share=Decimal("0.8"), reserve_usd=reserve)
    spent = before
    for share in shares:
        if decide(
            plan, spent_usd=spent, rate_usd_per_second=rate, next_step_seconds=most_seconds
        ).stop:
            break
        spent += rate * Decimal(most_seconds * share)
    assert spent == before or spent + reserve <= run


@settings(deadline=None)
@given(run=st.decimals(min_value="0.000001", max_value=100, places=6), spent=usd, reserve=usd)
@example(run=Decimal(10), spent=Decimal(7), reserve=Decimal(3))
@example(run=Decimal(10), spent=Decimal(7), reserve=Decimal(4))
def test_start_stops_exactly_where_nothing_is_left(
    run: Decimal, spent: Decimal, reserve: Decimal
) -> None:
    plan = Budget(run_usd=run, warn_share=Decimal("0.8"), reserve_usd=reserve)
    decision = check_start(plan, spent_usd=spent, usd_per_hour=Decimal("0.08"))
    assert decision.stop == (spent + reserve >= run)
    assert (decision.spent_usd, decision.left_usd) == (spent, run - spent - reserve)


def test_a_budget_below_its_reserve_lets_the_rest_run() -> None:
    tiny = Budget.plan(
        run_usd=Decimal("0.001"),
        warn_share=0.8,
        reserve_seconds=120,
        usd_per_hour=Decimal("0.08"),
    )
    assert tiny.reserve_usd == 120 * Decimal("0.000022222222222222")
    decision = check_start(tiny, spent_usd=Decimal(0), usd_per_hour=Decimal("0.08"))
    assert decision.stop
    assert "may pass the budget by up to $0.00167" in decision.reason


def test_a_reserve_is_time_at_its_price_and_what_is_not_charged_by_time() -> None:
    plan = Budget.plan(
        run_usd=Decimal(10),
        warn_share=0.8,
        reserve_seconds=1800,
        usd_per_hour=Decimal("3.6"),
        reserve_usd=Decimal("0.25"),
    )
    assert (plan.run_usd, plan.warn_share) == (10, Decimal("0.8"))
    assert plan.reserve_usd == Decimal("2.05")


def test_free_steps_never_stop_a_run() -> None:
    decision = decide(
        budget(), spent_usd=Decimal(0), rate_usd_per_second=Decimal(0), next_step_seconds=1e9
    )
    assert decision.action == "continue"


def test_an_unknown_price_is_refused() -> None:
    with pytest.raises(BudgetRefused, match=r"prices\.local_usd_per_hour"):
        check_start(budget(), spent_usd=Decimal(0), usd_per_hour=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "0"}, "run_usd is 0"),
        ({"run": "-1"}, "run_usd is -1"),
        ({"run": "NaN"}, "finite Decimal"),
        ({"warn": "1.01"}, "warn_share"),
        ({"reserve": "-0.01"}, "reserve_usd"),
    ],
)
def test_impossible_budgets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        budget(**changes)


@pytest.mark.parametrize("warn", ["0", "1"])
def test_a_warning_may_come_at_once_or_never(warn: str) -> None:
    plan = budget(warn=warn, reserve="0")
    decision = decide(
        plan, spent_usd=Decimal(0), rate_usd_per_second=Decimal(1), next_step_seconds=1
    )
    assert decision.action == ("warn" if warn == "0" else "continue")


@pytest.mark.parametrize(("rate", "seconds"), [("1", float("nan")), ("1", -1.0), ("-1", 1.0)])
def test_a_step_of_unknown_cost_is_an_error(rate: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        decide(
            budget(),
            spent_usd=Decimal(0),
            rate_usd_per_second=Decimal(rate),
            next_step_seconds=seconds,
        )


def spending(spent: str, usd_per_hour: str = "3600", **limits: str) -> Spending:
    return Spending(
        budget=budget(**limits),
        usd_per_hour=Decimal(usd_per_hour),
        spent_usd=lambda: Decimal(spent),
    )


def test_the_money_left_as_affordable_seconds() -> None:
    assert spending("3").affordable_seconds() == 6
    assert spending("9").affordable_seconds() == 0
    assert spending("12").affordable_seconds() == 0
    assert spending("3", usd_per_hour="0").affordable_seconds() == float("inf")


def test_work_that_does_not_fit_is_refused_with_its_cost_and_what_is_left() -> None:
    spending("3").require(6, "encoding")
    with pytest.raises(BudgetRefused, match=r"encoding needs 8 s more, \$7.50.*\$3.00 are spent"):
        spending("3").require(7.5, "encoding")
    with pytest.raises(BudgetRefused, match=r"\$1.00 reserved"):
        spending("9").require(0, "encoding")
    spending("8.9", usd_per_hour="0").require(1e9, "encoding")


def test_a_claim_reserves_the_overhead_too_and_returns_what_is_left_without_it() -> None:
    written: list[Decimal] = []
    limit = SpendingLimit(usd=Decimal(20), by="the month", is_own_budget=False)
    reservation = RunReservation(read_limit=lambda: limit, write=written.append)
    run = dataclasses.replace(spending("3"), reservation=reservation, overhead_usd=Decimal(2))
    assert run.claim(Decimal(5)) == dataclasses.replace(limit, usd=Decimal(18))
    assert written == [7]
    assert run.claim(Decimal(18)).usd == 18
    assert run.claim(Decimal("18.01")).usd == 18
    assert written == [7, 20], "what does not fit is not reserved"
    assert run.claim(Decimal(30), least_usd=Decimal(17)).usd == 18
    assert run.claim(Decimal(30), least_usd=Decimal(19)).usd == 18
    assert written == [7, 20, 20, 21], "the least is, with its overhead"
    run = dataclasses.replace(run, overhead_usd=Decimal(21))
    assert run.claim(Decimal(1)).usd == AMOUNT_QUANTUM, "a budget is above 0"


def test_work_is_refused_by_what_other_runs_leave_of_a_month() -> None:
    limit = SpendingLimit(usd=Decimal(8), by="the month", is_own_budget=False)
    reservation = RunReservation(read_limit=lambda: limit, write=lambda usd: None)
    run = dataclasses.replace(spending("3"), reservation=reservation)
    run.require(4, "encoding")  # 3 + 4 + the reserve of 1 are the month's 8
    with pytest.raises(BudgetRefused, match=r"\$8\.00 that the run may.*limit is the month"):
        run.require(4.5, "encoding")
