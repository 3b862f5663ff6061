"""Sums that the database makes: of what, in which order, and exact to the last digit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.costs.charges import START, charge
from turbo_vaed.costs import Charge, ChargeGroup, Ledger, total_usd
from turbo_vaed.costs.db.schema import GROUP_NAMES, halves
from turbo_vaed.costs.money import from_units, to_units
from turbo_vaed.errors import UserError


def grouped(charges: Iterable[Charge]) -> tuple[ChargeGroup, ...]:
    """The same by hand."""
    groups: dict[tuple[str, ...], list[Charge]] = {}
    for one in charges:
        groups.setdefault(tuple(getattr(one, name) for name in GROUP_NAMES), []).append(one)
    made = [
        ChargeGroup(
            **{name: getattr(found[0], name) for name in GROUP_NAMES},
            quantity=total_usd(c.quantity for c in found),
            amount_usd=total_usd(c.amount_usd for c in found),
            charges=len(found),
            first_at=min(c.started_at for c in found),
            last_at=max(c.ended_at for c in found),
        )
        for found in groups.values()
    ]
    return tuple(sorted(made, key=lambda g: (g.first_at, *(getattr(g, n) for n in GROUP_NAMES))))


MANY = [
    charge(
        15 * n,
        run=f"demo-{n % 3}",
        customer="acme" if n % 3 == 2 else "demo",
        stage=("clip", "encode")[n // 3 % 2],
        useful="wasted" if n % 7 == 0 else "useful",
        quantity=Decimal(15) + Decimal(n).scaleb(-6),
        ended_at=START + timedelta(seconds=15 * n + (400 if n == 1 else 15)),
    )
    for n in range(60)
]


@pytest.mark.parametrize("name", GROUP_NAMES)
def test_charges_that_differ_in_a_name_are_of_two_groups(url: str, name: str) -> None:
    changed = {"market": "spot", "useful": "wasted"}.get(name, "other")
    two = [charge(), dataclasses.replace(charge(), **{name: changed})]
    with Ledger.open(url) as ledger:
        ledger.add_all([*two, charge(15)])
        found = ledger.grouped()
    assert found == grouped([*two, charge(15)])
    assert sorted(group.charges for group in found) == [1, 2]


def test_charges_of_two_prices_are_of_one_group(url: str) -> None:
    both = [charge(), charge(15, unit_price_usd=Decimal("0.00003"))]
    with Ledger.open(url) as ledger:
        ledger.add_all(both)
        (group,) = ledger.grouped()
    assert group.charges == 2
    assert group.quantity == 30
    assert group.amount_usd == total_usd(c.amount_usd for c in both)


def test_groups_of_a_customer_and_a_run(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add_all(MANY)
        assert ledger.grouped() == grouped(MANY)
        assert len(ledger.grouped()) == 12
        for customer in (None, "demo", "acme", "nobody"):
            for run in (None, "demo-0", "demo-2"):
                expected = [
                    c for c in MANY if customer in (None, c.customer) and run in (None, c.run)
                ]
                assert ledger.grouped(customer=customer, run=run) == grouped(expected)
                assert set(ledger.charges(customer=customer, run=run)) == set(expected)


def test_since_is_included_and_until_is_excluded(url: str) -> None:
    since, until = START + timedelta(seconds=150), START + timedelta(seconds=450)
    expected = [c for c in MANY if since <= c.started_at < until]
    assert len(expected) == 20
    tokyo = timezone(timedelta(hours=9))
    with Ledger.open(url) as ledger:
        ledger.add_all(MANY)
        assert ledger.grouped(since=since, until=until) == grouped(expected)
        assert ledger.grouped(
            since=since.astimezone(tokyo), until=until.astimezone(tokyo), customer="demo"
        ) == grouped(c for c in expected if c.customer == "demo")
        assert ledger.grouped(since=until, until=since) == ()


def test_adjacent_months_share_no_charge_and_lose_none(url: str) -> None:
    """The last microsecond of a month is in it, the first of the next is not."""
    next_month = datetime(2026, 12, 1, tzinfo=UTC)
    late = [
        dataclasses.replace(
            charge(), started_at=next_month + timedelta(microseconds=n), ended_at=next_month
            + timedelta(seconds=1)
        )
        for n in (-1, 0, 1)
    ]  # fmt: skip
    with Ledger.open(url) as ledger:
        ledger.add_all(late)
        assert sum(g.charges for g in ledger.grouped(until=next_month)) == 1
        assert sum(g.charges for g in ledger.grouped(since=next_month)) == 2


def test_groups_come_by_their_first_start_and_then_by_name(url: str) -> None:
    charges = [charge(15, run="a"), charge(0, run="c"), charge(0, run="b"), charge(30, run="b")]
    with Ledger.open(url) as ledger:
        ledger.add_all(charges)
        assert [group.run for group in ledger.grouped()] == ["b", "c", "a"]


def test_a_correction_is_subtracted_from_its_group(url: str) -> None:
    back = charge(quantity=Decimal(-15))
    with Ledger.open(url) as ledger:
        ledger.add_all([charge(), back])
        (group,) = ledger.grouped()
    assert (group.quantity, group.amount_usd, group.charges) == (0, 0, 2)


def test_the_largest_numbers_add_up_beyond_what_one_may_be(url: str) -> None:
    """Sums of 64 bits would pass their end at the second of them."""
    largest = from_units(10**38 - 1)
    charges = [
        charge(n, quantity=Decimal(1), unit_price_usd=largest, amount_usd=largest)
        for n in range(40)
    ]
    with Ledger.open(url) as ledger:
        ledger.add_all(charges)
        assert ledger.total() == from_units(40 * (10**38 - 1))
        assert to_units(ledger.total()) == 40 * (10**38 - 1)


def test_a_time_without_a_zone_is_refused(url: str) -> None:
    with Ledger.open(url) as ledger, pytest.raises(UserError, match=r"since .* no time zone"):
        ledger.grouped(since=datetime(2026, 11, 1))


def test_groups_can_be_limited_to_runs_that_started_something_in_a_period(url: str) -> None:
    """To the microsecond, and of a run everything within the given period."""
    late = charge(1000, run="late", stage="gate"), charge(0, run="late")
    with Ledger.open(url) as ledger:
        ledger.add_all([*MANY, *late])
        for since, until, runs in (
            (1000, 1000.000001, {"late"}),
            (1000.000001, 2000, set()),
            (900, 1000, set()),
        ):
            own = START + timedelta(seconds=since), START + timedelta(seconds=until)
            found = ledger.grouped(of_runs_in=own)
            assert {group.run for group in found} == runs
            assert found == (grouped(late) if runs else ())
            before = ledger.grouped(of_runs_in=own, until=own[0])
            assert before == (grouped(late[1:]) if runs else ())
        everything = START, START + timedelta(days=1)
        assert ledger.grouped(of_runs_in=everything) == grouped([*MANY, *late])
        of_acme = [one for one in MANY if one.customer == "acme"]
        assert ledger.grouped(of_runs_in=everything, customer="acme") == grouped(of_acme)


def test_spent_and_wasted_are_the_sums_of_the_groups(url: str) -> None:
    since, until = START + timedelta(seconds=150), START + timedelta(seconds=450)
    with Ledger.open(url) as ledger:
        ledger.add_all(MANY)
        for customer in (None, "demo", "acme", "nobody"):
            found = ledger.grouped(customer=customer, since=since, until=until)
            assert ledger.spent(customer=customer, since=since, until=until) == (
                total_usd(g.amount_usd for g in found),
                total_usd(g.amount_usd for g in found if g.useful == "wasted"),
            )


def test_customers_with_charges_and_the_times_of_a_runs_stage(url: str) -> None:
    with Ledger.open(url) as ledger:
        assert ledger.customers() == ()
        ledger.add_all(
            [
                *(charge(15 * n, resource=f"node-{n}", stage="distill") for n in (1, 0, 2)),
                charge(600, run="other", stage="distill"),
                charge(900),
                charge(0, stage="distill", customer="acme"),
            ]
        )
        assert ledger.customers() == ("acme", "demo")
        begun = [START + timedelta(seconds=s) for s in (0, 600)]
        ended = [START + timedelta(seconds=s) for s in (45, 615)]
        assert ledger.runs_of_stage("demo", "distill") == {
            charge().run: (begun[0], ended[0]),
            "other": (begun[1], ended[1]),
        }
        assert ledger.runs_of_stage("nobody", "distill") == {}


@pytest.mark.parametrize("names", [{}, {"customer": "demo"}, {"run": "demo-1"}])
def test_sqlite_neither_sorts_nor_looks_up_charges(tmp_path: Path, names: dict[str, str]) -> None:
    """What makes a month's report of a million charges a matter of a second."""
    plan: list[str] = []
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:

        def explain(_c: Any, cursor: Any, statement: str, given: Any, *_: Any) -> None:
            if statement.startswith("SELECT"):
                found = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", given)
                plan.extend(row[3] for row in found)

        sa.event.listen(ledger._engine, "before_cursor_execute", explain)
        ledger.grouped(since=START, until=START + timedelta(days=30), **names)
        if not names:
            ledger.spent(customer=None, since=START, until=START + timedelta(days=30))
            ledger.runs_of_stage("demo", "encode")
    assert any("charges USING COVERING INDEX ix_charges_sums (group_id=" in line for line in plan)
    assert not any("TEMP B-TREE" in line for line in plan), plan


@given(st.integers(-(10**38) + 1, 10**38 - 1))
def test_halves_are_of_64_bits_and_give_the_number_back(units: int) -> None:
    high, low = halves(Decimal(units).scaleb(-18, Context(prec=60)))
    assert -(2**63) <= low < 2**63 and -(2**63) <= high < 2**63
    assert (high << 64) + low == units


def test_sums_of_a_group_and_their_parts_agree(url: str) -> None:
    """For any selection, the parts add up to the whole to the last digit."""
    with Ledger.open(url) as ledger:
        ledger.add_all(MANY)
        whole = ledger.total()
        cuts = [START + timedelta(seconds=s) for s in (100, 333, 600)]
        spans = zip([None, *cuts], [*cuts, None], strict=True)
        parts = [g.amount_usd for a, b in spans for g in ledger.grouped(since=a, until=b)]
    assert total_usd(parts) == whole == total_usd(c.amount_usd for c in MANY)


def test_the_span_is_from_the_first_start_to_the_last(url: str) -> None:
    with Ledger.open(url) as ledger:
        assert ledger.span() is None
        ledger.add_all([charge(100), charge(7, stage="gate"), charge(900, customer="acme")])
        assert ledger.span() == (START + timedelta(seconds=7), START + timedelta(seconds=900))
        assert ledger.span(customer="acme") == (START + timedelta(seconds=900),) * 2
        assert ledger.span(customer="nobody") is None
