"""Which customers an operator has to look at."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.report.fleet.made_up import ELSEWHERE, NOW, last_run
from turbo_vaed.config.money import BudgetParams
from turbo_vaed.costs.open_runs import DEAD_AFTER, OpenRun
from turbo_vaed.report.fleet.alarms import KINDS, held
from turbo_vaed.report.fleet.record import GateValue
from turbo_vaed.report.fleet.status import Plan, Status

MONTHLY = BudgetParams(customer_month_usd=Decimal(100))


def status(**given: Any) -> Status:
    return Status(customer="acme", now=NOW, **given)


def names(found: Status) -> list[str]:
    return [alarm.name for alarm in held(found)]


def open_run(seen_ago: timedelta) -> OpenRun:
    return OpenRun(
        customer="acme", token=1, run="acme-1", step="distill", flow_run="", holder=ELSEWHERE,
        began_at=NOW - timedelta(hours=1), seen_at=NOW - seen_ago, now=NOW, abort_by="",
        ended_at=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "result", "expected"),
    [
        ("Passed", "passes", []),
        ("GateFailed", "fails", ["gate-failed"]),
        ("Inconclusive", "inconclusive", ["inconclusive"]),
        ("Refused", "passes", ["refused"]),
        ("Fault", "", ["fault"]),
        ("Stopped", "fails", []),
        ("Unrecorded", "", []),
        # What was wrong before nothing changed is still wrong.
        ("Unchanged", "passes", []),
        ("Unchanged", "fails", ["gate-failed"]),
        ("Unchanged", "inconclusive", ["inconclusive"]),
    ],
)
def test_an_outcome_holds_an_alarm(outcome: str, result: str, expected: list[str]) -> None:
    assert names(status(last=last_run("acme", 0, outcome=outcome, result=result))) == expected


def test_a_customer_that_never_ran_holds_none() -> None:
    assert names(status()) == []


@pytest.mark.parametrize(
    ("ago", "expected"),
    [(timedelta(seconds=30), []), (DEAD_AFTER + timedelta(seconds=1), ["dead-run"])],
)
def test_a_run_without_heartbeats_is_dead(ago: timedelta, expected: list[str]) -> None:
    assert names(status(open_run=open_run(ago))) == expected


@pytest.mark.parametrize(
    ("usd", "expected"), [("79.99", []), ("80", ["budget"]), ("120", ["budget"])]
)
def test_a_month_is_nearly_spent_from_warn_share_on(usd: str, expected: list[str]) -> None:
    assert names(status(budget=MONTHLY, month_usd=Decimal(usd))) == expected
    late = replace(MONTHLY, warn_share=1.0)
    assert (names(status(budget=late, month_usd=Decimal(usd))) == ["budget"]) == (usd == "120")


def test_a_runs_budget_is_an_alarm_while_the_run_goes_on() -> None:
    """Distillation may use its whole budget: of a run that has passed nobody has to do anything."""
    dear = last_run("acme", 0, usd=Decimal(94))
    assert names(status(last=dear, budget=BudgetParams())) == []
    going_on = status(
        last=dear,
        budget=BudgetParams(),
        open_run=open_run(timedelta(0)),
        open_usd=Decimal("76.1"),
    )
    assert names(going_on) == ["budget"]
    assert names(replace(going_on, open_usd=Decimal("75.9"))) == []


def test_a_missed_run_is_one_until_the_next_begins() -> None:
    missed = status(plan=Plan(next_at=NOW, missed_at=NOW - timedelta(hours=20)))
    assert names(missed) == ["missed"]
    assert names(replace(missed, open_run=open_run(timedelta(0)))) == []


def test_params_that_are_not_valid_are_an_alarm() -> None:
    assert names(status(problem="distill.steps: found 0")) == ["params"]


def test_a_removed_customer_holds_only_the_alarm_of_a_run_that_goes_on() -> None:
    gone = status(is_listed=False, last=last_run("acme", 0, outcome="Fault"))
    assert names(gone) == []
    assert names(replace(gone, open_run=open_run(timedelta(hours=1)))) == ["dead-run"]


def test_the_gravest_comes_first() -> None:
    found = held(
        status(
            last=last_run("acme", 0, outcome="Refused"),
            open_run=open_run(timedelta(hours=1)),
            budget=MONTHLY,
            month_usd=Decimal(99),
        )
    )
    assert [alarm.name for alarm in found] == ["dead-run", "refused", "budget"]
    tones = [kind.tone for kind in KINDS.values()]
    assert tones == sorted(tones), "bad before warn"


def test_a_gate_that_failed_before_names_its_checks() -> None:
    """The sentence of an unchanged run says that nothing was done."""
    failed = GateValue(name="psnr", measured=21.9, limit=22.0, unit="dB", result="fails")
    last = last_run("acme", 0, outcome="Unchanged", result="fails", checks=(failed,))
    (alarm,) = held(status(last=last))
    assert "PSNR" in alarm.text and last.sentence not in alarm.text
