"""What runs that are not over keep back of a month that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.charges import charge
from turbo_vaed.costs import Budget, Ledger, Limits, allowance, decide
from turbo_vaed.costs.holds import LAPSES_AFTER
from turbo_vaed.errors import UserError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def spend(ledger: Ledger, run: str, usd: str | Decimal, at: datetime = NOW, **changes: Any) -> None:
    """At 1 USD a second."""
    ledger.add(
        charge(
            run=run,
            quantity=Decimal(usd),
            unit_price_usd=Decimal(1),
            started_at=at,
            ended_at=at,
            **changes,
        )
    )


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as ledger:
        yield ledger


def kept(ledger: Ledger, at: datetime = NOW) -> dict[str, Decimal]:
    return {hold.run: hold.usd for hold in ledger.holds(at=at)}


def test_what_is_spent_is_part_of_what_was_told(ledger: Ledger) -> None:
    ledger.hold("demo-1", "demo", Decimal("10"), at=NOW)
    ledger.hold("acme-1", "acme", Decimal("3.000000000001"), at=NOW)
    assert kept(ledger) == {"acme-1": Decimal("3.000000000001"), "demo-1": 10}
    spend(ledger, "demo-1", "4")
    spend(ledger, "demo-1", "2.5", stage="distill")
    spend(ledger, "other", "100")
    acme, demo = ledger.holds(at=NOW)
    assert (demo.customer, acme.customer) == ("demo", "acme")
    assert [demo.upto_usd, demo.spent_usd, demo.usd] == [10, Decimal("6.5"), Decimal("3.5")]
    assert [acme.spent_usd, acme.usd] == [0, Decimal("3.000000000001")]
    spend(ledger, "demo-1", "5", stage="gate")
    assert kept(ledger)["demo-1"] == 0, "and never less"


def test_the_last_word_counts_and_a_run_that_is_over_keeps_nothing(ledger: Ledger) -> None:
    ledger.hold("demo-1", "demo", Decimal(10), at=NOW)
    ledger.hold("demo-1", "demo", Decimal(4), at=NOW)
    assert kept(ledger) == {"demo-1": 4}
    for _ in range(2):
        ledger.release("demo-1")
        assert kept(ledger) == {}
    assert ledger.total() == 0, "a hold is no charge"


def test_a_killed_run_keeps_nothing_after_an_hour_without_a_word(ledger: Ledger) -> None:
    ledger.hold("demo-1", "demo", Decimal(10), at=NOW)
    assert kept(ledger, NOW + LAPSES_AFTER) == {"demo-1": 10}
    later = NOW + LAPSES_AFTER + timedelta(seconds=1)
    assert kept(ledger, later) == {}
    spend(ledger, "demo-1", "1", at=NOW + timedelta(minutes=50))
    assert kept(ledger, later) == {"demo-1": 9}, "its meter went on: it is alive"


@pytest.mark.parametrize("usd", [Decimal("-1"), Decimal("NaN"), 1.5])
def test_what_is_no_amount_is_refused(ledger: Ledger, usd: Any) -> None:
    with pytest.raises(UserError, match="upto_usd is"):
        ledger.hold("demo-1", "demo", usd, at=NOW)


def test_a_month_leaves_to_a_run_what_others_neither_spent_nor_keep_back(ledger: Ledger) -> None:
    spend(ledger, "acme-1", "2", customer="acme")
    spend(ledger, "demo-1", "1")
    ledger.hold("acme-1", "acme", Decimal(7), at=NOW)
    ledger.hold("demo-1", "demo", Decimal(50), at=NOW)
    ledger.hold("demo-2", "demo", Decimal(3), at=NOW)
    limits = Limits(run_usd=Decimal(95), customer_month_usd=Decimal(30), total_month_usd=None)
    found = allowance(ledger, limits, run="demo-1", customer="demo", at=NOW)
    assert found.usd == 30 - 3, "its own is no other's, and acme has a limit of its own"
    assert found.by == (
        "budget.customer_month_usd of $30.00 in 2026-11, of which other runs have spent $0.00, and "
        "demo-2 keep back $3.00 for what they still have to do"
    )
    limits = dataclasses.replace(limits, total_month_usd=Decimal(20))
    found = allowance(ledger, limits, run="demo-1", customer="demo", at=NOW)
    assert (
        found.usd == 20 - 2 - 5 - 3
        and "spent $2.00, and acme-1, demo-2 keep back $8.00" in found.by
    )


class Run:
    """One that trains by the rules: it tells what it may come to, asks what is left to it, and
    then takes steps for as long as `decide` lets it. Its charges come late, its reserve is spent
    last."""

    def __init__(self, ledger: Ledger, name: str, *, reserve: int, step: int) -> None:
        self.ledger, self.name = ledger, name
        self.reserve, self.step = Decimal(reserve), Decimal(step)
        self.spent = self.written = Decimal(0)
        self.may_spend: Decimal | None = None
        self.is_stopped = self.is_over = False

    def hear(self, limit: Decimal) -> None:
        ahead = Decimal(0) if self.is_stopped else self.step
        upto = self.spent + ahead + self.reserve
        self.ledger.hold(self.name, "demo", upto, at=NOW)
        limits = Limits(run_usd=Decimal(10**6), customer_month_usd=None, total_month_usd=limit)
        self.may_spend = allowance(self.ledger, limits, run=self.name, customer="demo", at=NOW).usd

    def go_on(self) -> None:
        """A step, if it fits; then the run hears nothing until it is told again."""
        if self.may_spend is None or self.is_stopped:
            return
        budget = Budget(
            run_usd=max(self.may_spend, Decimal("1e-12")),
            warn_share=Decimal(1),
            reserve_usd=self.reserve,
        )
        found = decide(
            budget,
            spent_usd=self.spent,
            rate_usd_per_second=Decimal(1),
            next_step_seconds=float(self.step),
        )
        self.is_stopped, self.may_spend = found.stop, None
        if not found.stop:
            self.spent += self.step

    def write(self) -> None:
        if self.spent > self.written:
            spend(self.ledger, self.name, self.spent - self.written, stage=f"at {self.spent}")
            self.written = self.spent

    def finish(self) -> None:
        """What follows training; it is over only when all of it is charged."""
        if self.is_stopped and not self.is_over:
            self.spent += self.reserve
            self.reserve = Decimal(0)
            self.write()
            self.ledger.release(self.name)
            self.is_over = True


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("hhggwf")), max_size=120),
    st.integers(100, 400),
)
def test_runs_side_by_side_never_pass_the_month_that_they_share(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[tuple[int, int]],
    moments: list[tuple[int, str]],
    limit: int,
) -> None:
    """Whatever the order in which they tell, ask, go on and are charged: only those whose reserve
    fits when they begin are let in, as a flow does it."""
    folder = tmp_path_factory.mktemp("month")
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        runs = []
        for number, (reserve, step) in enumerate(kinds):
            run = Run(ledger, f"run-{number}", reserve=reserve, step=step)
            run.hear(Decimal(limit))
            assert run.may_spend is not None
            if run.may_spend >= run.reserve:
                runs.append(run)
            else:
                ledger.release(run.name)
        for who, what in [*moments, *((n, w) for n in range(4) for w in "hghghghg")]:
            run = runs[who % len(runs)]
            match what:
                case "h":
                    run.hear(Decimal(limit))
                case "g":
                    run.go_on()
                case "w":
                    run.write()
                case "f":
                    run.finish()
            assert sum(one.spent + one.reserve for one in runs) <= limit
