"""What runs that are not over keep back of a month that they share."""

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
from turbo_vaed.costs import Budget, Ledger, Limits, Share, allowance, decide
from turbo_vaed.costs.holds import LAPSES_AFTER
from turbo_vaed.costs.reservation import FRESH_SECONDS
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


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="no time zone"):
        ledger.hold("demo-1", "demo", Decimal(1), at=datetime(2026, 11, 24))
    with pytest.raises(UserError, match="no time zone"):
        ledger.holds(at=datetime(2026, 11, 24))


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


def share(ledger: Ledger, run: str, limit: int, ticks: Iterator[float] | None = None) -> Share:
    """Of a month's limit of all customers; nothing is fresh, unless there are `ticks`."""
    limits = Limits(run_usd=Decimal(10**6), customer_month_usd=None, total_month_usd=Decimal(limit))
    return Share(
        ask=lambda: allowance(ledger, limits, run=run, customer="demo", at=NOW),
        tell=lambda usd: ledger.hold(run, "demo", usd, at=NOW),
        clock=(ticks or itertools.count(0.0, FRESH_SECONDS)).__next__,
    )


def test_a_claim_that_does_not_fit_is_told_to_nobody(ledger: Ledger) -> None:
    ledger.hold("acme-1", "acme", Decimal(70), at=NOW)
    ours = share(ledger, "demo-1", 100)
    assert ours.claim(Decimal(20)).usd == 30 and kept(ledger)["demo-1"] == 20
    found = ours.claim(Decimal(31))
    assert found.usd == 30 and "acme-1 keep back $70.00" in found.by and not found.is_own
    assert kept(ledger)["demo-1"] == 20, "as before"
    assert ours.claim(Decimal(50), least_usd=Decimal(10)).usd == 30
    assert kept(ledger)["demo-1"] == 30, "as much of it as fits"
    assert ours.claim(Decimal(50), least_usd=Decimal(40)).usd == 30
    assert kept(ledger)["demo-1"] == 40, "what comes in any case"


def test_of_two_claims_at_once_the_second_to_tell_sees_the_first(ledger: Ledger) -> None:
    """The other one tells between our question and our word."""
    ours = share(ledger, "demo-1", 100)
    tell = ours._tell

    def late(usd: Decimal) -> None:
        ledger.hold("acme-1", "acme", Decimal(60), at=NOW)
        tell(usd)

    ours._tell = late
    assert ours.claim(Decimal(50)).usd == 40
    assert kept(ledger)["demo-1"] == 0, "it does not fit: others need not wait for it"


def test_a_claim_within_the_last_one_asks_nobody_for_some_seconds(ledger: Ledger) -> None:
    now = [0.0]
    ours = share(ledger, "demo-1", 100, iter(lambda: now[0], None))
    assert ours.claim(Decimal(20)).usd == 100
    ledger.hold("acme-1", "acme", Decimal(60), at=NOW)
    now[0] = 4.9
    assert ours.claim(Decimal(19)).usd == 100, "acme has seen that 20 are ours"
    assert ours.claim(Decimal(21)).usd == 40
    ledger.release("acme-1")
    now[0] = 9.9
    assert ours.claim(Decimal(1)).usd == 100


def test_a_ledger_that_takes_no_word_ends_no_stage(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ours = share(ledger, "demo-1", 100)

    def full(usd: Decimal) -> None:
        raise Unreachable("the disk is full")

    ours._tell = full
    assert ours.claim(Decimal(20)).usd == 100
    assert "other runs are not told what this one may come to: the disk is full" in caplog.text


class Run:
    """One that trains by the rules: it claims its reserve and some steps, and takes them for as
    long as `decide` lets it, until it claims anew. Its charges come late, its reserve is spent
    last."""

    def __init__(self, ledger: Ledger, name: str, limit: int, *, reserve: int, step: int) -> None:
        self.ledger, self.name = ledger, name
        self.share = share(ledger, name, limit)
        self.reserve, self.step = Decimal(reserve), Decimal(step)
        self.spent = self.written = self.may_spend = Decimal(0)
        self.steps_ahead = 0
        self.is_begun = self.is_stopped = self.is_over = False

    def begin(self) -> None:
        """As a flow lets it in: where its least fits, and fits still when others know of it."""
        if self.is_begun or self.share.ask().usd < self.reserve:
            return
        self.is_begun = self.share.claim(self.reserve, least_usd=self.reserve).usd >= self.reserve
        if not self.is_begun:
            self.ledger.release(self.name)

    def hear(self) -> None:
        """Three steps ahead: a driver that is heard tells more often."""
        if not self.is_stopped and not self.is_over:
            least = self.spent + self.reserve
            self.may_spend = self.share.claim(least + 3 * self.step, least_usd=least).usd
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("bhhgggwf")), max_size=120),
    st.integers(60, 400),
)
def test_runs_side_by_side_never_pass_the_month_that_they_share(
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
