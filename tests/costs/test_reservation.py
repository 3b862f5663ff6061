"""What runs that are not over have reserved of a month's budget that they share."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.charges import charge
from turbo_vaed.costs import Budget, Ledger, Limits, RunReservation, decide, spending_limit
from turbo_vaed.costs.reservation import EXPIRES_AFTER, FRESH_SECONDS
from turbo_vaed.errors import Unreachable, UserError

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


def reserved(ledger: Ledger, at: datetime = NOW) -> dict[str, Decimal]:
    return {one.run: one.unspent_usd for one in ledger.reservations(at=at)}


def test_spend_is_part_of_a_reservation(ledger: Ledger) -> None:
    ledger.record_reservation("demo-1", "demo", Decimal("10"), at=NOW)
    ledger.record_reservation("acme-1", "acme", Decimal("3.000000000001"), at=NOW)
    assert reserved(ledger) == {"acme-1": Decimal("3.000000000001"), "demo-1": 10}
    spend(ledger, "demo-1", "4")
    spend(ledger, "demo-1", "2.5", stage="distill")
    spend(ledger, "other", "100")
    acme, demo = ledger.reservations(at=NOW)
    assert (demo.customer, acme.customer) == ("demo", "acme")
    assert [demo.upto_usd, demo.spent_usd, demo.unspent_usd] == [10, Decimal("6.5"), Decimal("3.5")]
    assert [acme.spent_usd, acme.unspent_usd] == [0, Decimal("3.000000000001")]
    spend(ledger, "demo-1", "5", stage="gate")
    assert reserved(ledger)["demo-1"] == 0, "and never less"


def test_the_last_reservation_replaces_earlier_ones_and_a_released_one_is_gone(
    ledger: Ledger,
) -> None:
    ledger.record_reservation("demo-1", "demo", Decimal(10), at=NOW)
    ledger.record_reservation("demo-1", "demo", Decimal(4), at=NOW)
    assert reserved(ledger) == {"demo-1": 4}
    for _ in range(2):
        ledger.release("demo-1")
        assert reserved(ledger) == {}
    assert ledger.total() == 0, "a reservation is no charge"


def test_a_reservation_expires_an_hour_after_the_last_sign_of_its_run(ledger: Ledger) -> None:
    ledger.record_reservation("demo-1", "demo", Decimal(10), at=NOW)
    assert reserved(ledger, NOW + EXPIRES_AFTER) == {"demo-1": 10}
    later = NOW + EXPIRES_AFTER + timedelta(seconds=1)
    assert reserved(ledger, later) == {}
    spend(ledger, "demo-1", "1", at=NOW + timedelta(minutes=50))
    assert reserved(ledger, later) == {"demo-1": 9}, "its meter went on: it is alive"


@pytest.mark.parametrize("usd", [Decimal("-1"), Decimal("NaN"), 1.5])
def test_an_invalid_amount_is_refused(ledger: Ledger, usd: Any) -> None:
    with pytest.raises(UserError, match="upto_usd is"):
        ledger.record_reservation("demo-1", "demo", usd, at=NOW)


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="no time zone"):
        ledger.record_reservation("demo-1", "demo", Decimal(1), at=datetime(2026, 11, 24))
    with pytest.raises(UserError, match="no time zone"):
        ledger.reservations(at=datetime(2026, 11, 24))


def test_a_month_leaves_a_run_what_others_have_neither_spent_nor_reserved(ledger: Ledger) -> None:
    spend(ledger, "acme-1", "2", customer="acme")
    spend(ledger, "demo-1", "1")
    ledger.record_reservation("acme-1", "acme", Decimal(7), at=NOW)
    ledger.record_reservation("demo-1", "demo", Decimal(50), at=NOW)
    ledger.record_reservation("demo-2", "demo", Decimal(3), at=NOW)
    limits = Limits(run_usd=Decimal(95), customer_month_usd=Decimal(30), total_month_usd=None)
    found = spending_limit(ledger, limits, run="demo-1", customer="demo", at=NOW)
    assert found.usd == 30 - 3, "its own is no other's, and acme has a limit of its own"
    assert all(part in found.by for part in ("budget.customer_month_usd", "$3.00", "demo-2"))
    limits = dataclasses.replace(limits, total_month_usd=Decimal(20))
    found = spending_limit(ledger, limits, run="demo-1", customer="demo", at=NOW)
    assert found.usd == 20 - 2 - 5 - 3
    assert all(part in found.by for part in ("budget.total_month_usd", "$2.00", "$8.00"))
    assert all(run in found.by for run in ("acme-1", "demo-2"))


def reservation(
    ledger: Ledger, run: str, limit: int, ticks: Iterator[float] | None = None
) -> RunReservation:
    """Of a month's limit of all customers; nothing is fresh, unless there are `ticks`."""
    limits = Limits(run_usd=Decimal(10**6), customer_month_usd=None, total_month_usd=Decimal(limit))
    return RunReservation(
        read_limit=lambda: spending_limit(ledger, limits, run=run, customer="demo", at=NOW),
        write=lambda usd: ledger.record_reservation(run, "demo", usd, at=NOW),
        clock=(ticks or itertools.count(0.0, FRESH_SECONDS)).__next__,
    )


def test_a_claim_that_does_not_fit_leaves_the_reservation_as_it_was(ledger: Ledger) -> None:
    ledger.record_reservation("acme-1", "acme", Decimal(70), at=NOW)
    ours = reservation(ledger, "demo-1", 100)
    assert ours.claim(Decimal(20)).usd == 30 and reserved(ledger)["demo-1"] == 20
    found = ours.claim(Decimal(31))
    assert found.usd == 30 and "acme-1" in found.by and not found.is_own_budget
    assert reserved(ledger)["demo-1"] == 20, "as before"
    assert ours.claim(Decimal(50), least_usd=Decimal(10)).usd == 30
    assert reserved(ledger)["demo-1"] == 30, "as much of it as fits"
    assert ours.claim(Decimal(50), least_usd=Decimal(40)).usd == 30
    assert reserved(ledger)["demo-1"] == 40, "what comes in any case"


def test_the_later_of_two_concurrent_claims_sees_the_earlier(ledger: Ledger) -> None:
    """The other run writes between our reading and our writing."""
    ours = reservation(ledger, "demo-1", 100)
    write = ours._write

    def late(usd: Decimal) -> None:
        ledger.record_reservation("acme-1", "acme", Decimal(60), at=NOW)
        write(usd)

    ours._write = late
    assert ours.claim(Decimal(50)).usd == 40
    assert reserved(ledger)["demo-1"] == 0, "it does not fit, so others are not blocked by it"


def test_a_claim_below_the_last_one_does_not_read_the_ledger_for_some_seconds(
    ledger: Ledger,
) -> None:
    now = [0.0]
    ours = reservation(ledger, "demo-1", 100, iter(lambda: now[0], None))
    assert ours.claim(Decimal(20)).usd == 100
    ledger.record_reservation("acme-1", "acme", Decimal(60), at=NOW)
    now[0] = 4.9
    assert ours.claim(Decimal(19)).usd == 100, "acme has read our reservation of 20"
    assert ours.claim(Decimal(21)).usd == 40
    ledger.release("acme-1")
    now[0] = 9.9
    assert ours.claim(Decimal(1)).usd == 100


def test_a_ledger_that_cannot_be_written_ends_no_stage(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ours = reservation(ledger, "demo-1", 100)

    def full(usd: Decimal) -> None:
        raise Unreachable("the disk is full")

    ours._write = full
    assert ours.claim(Decimal(20)).usd == 100
    assert "the disk is full" in caplog.text


class Run:
    """One that trains by the rules: it claims its reserve and some steps, and takes them for as
    long as `decide` lets it, until it claims anew. Its charges come late, its reserve is spent
    last."""

    def __init__(self, ledger: Ledger, name: str, limit: int, *, reserve: int, step: int) -> None:
        self.ledger, self.name = ledger, name
        self.reservation = reservation(ledger, name, limit)
        self.reserve, self.step = Decimal(reserve), Decimal(step)
        self.spent = self.written = self.may_spend = Decimal(0)
        self.steps_ahead = 0
        self.is_begun = self.is_stopped = self.is_over = False

    def begin(self) -> None:
        """As a flow lets it in: where its least fits, and fits still when others know of it."""
        if self.is_begun or self.reservation.spending_limit().usd < self.reserve:
            return
        self.is_begun = (
            self.reservation.claim(self.reserve, least_usd=self.reserve).usd >= self.reserve
        )
        if not self.is_begun:
            self.ledger.release(self.name)

    def hear(self) -> None:
        """Three steps ahead: a driver that can be reached is called more often."""
        if not self.is_stopped and not self.is_over:
            least = self.spent + self.reserve
            self.may_spend = self.reservation.claim(least + 3 * self.step, least_usd=least).usd
            self.steps_ahead = 3

    def go_on(self) -> None:
        if self.is_stopped or self.is_over or not self.steps_ahead:
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
        self.is_stopped = found.stop
        if not found.stop:
            self.spent += self.step
            self.steps_ahead -= 1

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


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("bhhgggwf")), max_size=120),
    st.integers(60, 400),
)
def test_concurrent_runs_never_pass_the_month_that_they_share(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[tuple[int, int]],
    moments: list[tuple[int, str]],
    limit: int,
) -> None:
    """Whatever the order in which they come, claim, go on, are charged and end, while each is heard
    as often as it has claimed for."""
    empty = tmp_path_factory.getbasetemp() / "empty-ledger.db"
    if not empty.is_file():  # once: making the tables takes longer than an example
        Ledger.open(f"sqlite:///{empty}").close()
    path = shutil.copy(empty, tmp_path_factory.mktemp("month") / "ledger.db")
    with Ledger.open(f"sqlite:///{path}") as ledger:
        runs = [
            Run(ledger, f"run-{number}", limit, reserve=reserve, step=step)
            for number, (reserve, step) in enumerate(kinds)
        ]
        for who, what in [*moments, *((n, w) for n in range(4) for w in "bhgghggf")]:
            run = runs[who % len(runs)]
            if what == "b":
                run.begin()
            elif run.is_begun:
                {"h": run.hear, "g": run.go_on, "w": run.write, "f": run.finish}[what]()
            known = [one for one in runs if one.is_begun]
            assert sum(one.spent + (not one.is_over) * one.reserve for one in known) <= limit
