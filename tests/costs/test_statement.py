"""The statement of costs: sums, waste, spot's saving, budgets, what a step and a dB cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.costs import Charge, Ledger, total_usd
from turbo_vaed.costs.customer_costs import Customer, Distillation, Figure, Statement
from turbo_vaed.costs.ledger import ChargeGroup
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.price_source import OLD_PRICE, wasted
from turbo_vaed.costs.statement import (
    OF_RUNS_ALONE,
    MonthLimits,
    month_spent,
    run_that_covers,
    statement,
)
from turbo_vaed.costs.waste import waste_corrections
from turbo_vaed.report.costs import wording

JULY, AUGUST = Month(year=2026, number=7), Month(year=2026, number=8)
PRICES = {"g5.xlarge": Decimal("1.00")}


def group(usd: str | Decimal = "1", **changes: Any) -> ChargeGroup:
    values: dict[str, Any] = {
        "customer": "acme",
        "run": "acme-1",
        "stage": "distill",
        "resource": "node",
        "market": "local",
        "unit": "node-second",
        "useful": "useful",
        "price_source": "a test",
        "quantity": Decimal(3600),
        "amount_usd": Decimal(usd),
        "charges": 1,
        "first_at": datetime(2026, 8, 1, 10, tzinfo=UTC),
        "last_at": datetime(2026, 8, 1, 11, tzinfo=UTC),
    }
    return ChargeGroup(**{**values, **changes})


def customer(name: str = "acme", **changes: Any) -> Customer:
    return replace(
        Customer(name=name, run_budget_usd=Decimal(10), distilled="no history"), **changes
    )


def stated(
    months: Mapping[Month, Sequence[ChargeGroup]] | Sequence[ChargeGroup],
    *customers: Customer,
    **options: Any,
) -> Statement:
    """Of charges by month, or of August's."""
    by_month = months if isinstance(months, Mapping) else {AUGUST: months}
    period = options.get("period")
    inside = [month for month in sorted(by_month) if period in (None, month)]
    return statement(
        [group for month in inside for group in by_month[month]],
        outside=[g for month in by_month if month not in inside for g in by_month[month]],
        months=[
            month_spent(month, by_month[month])
            for month in sorted(by_month)
            if period is None or month <= period
        ],
        customers=customers or (customer(),),
        on_demand_usd_per_hour=PRICES.get,
        **options,
    )


amounts = st.decimals(Decimal("-1e6"), Decimal("1e6"), places=12)
groups = st.builds(
    group,
    amounts,
    customer=st.sampled_from(["acme", "beta"]),
    run=st.sampled_from(["one", "two"]),
    stage=st.sampled_from(["encode", "distill"]),
    market=st.sampled_from(["local", "spot", "on-demand"]),
    useful=st.sampled_from(["useful", "wasted"]),
    resource=st.sampled_from(["g5.xlarge", "other"]),
    quantity=st.decimals(Decimal(-10_000), Decimal(10_000), places=6),
)


@given(st.lists(groups, max_size=12), st.lists(groups, max_size=12))
def test_every_level_adds_up_to_the_last_digit(
    july: list[ChargeGroup], august: list[ChargeGroup]
) -> None:
    months = {JULY: july, AUGUST: august}
    for period, inside in ((None, july + august), (AUGUST, august)):
        found = stated(months, customer(), customer("beta"), period=period)
        total = found.total.figures
        assert total.spent_usd == total_usd(g.amount_usd for g in inside)
        assert total.wasted_usd == total_usd(g.amount_usd for g in inside if g.useful == "wasted")
        for level in (
            [customer_cost.figures for customer_cost in found.customers],
            [run.figures for run in found.runs],
            [line for run in found.runs for line in run.lines],
        ):
            for name in ("charges", "node_seconds", "spent_usd", "useful_usd", "wasted_usd"):
                assert sum(getattr(one, name) for one in level) == getattr(total, name)
            for one in level:
                assert one.useful_usd + one.wasted_usd == one.spent_usd
        everything = total_usd(g.amount_usd for g in july + august)
        if len({(g.customer, g.run) for g in inside}) == len(
            {(g.customer, g.run) for g in july + august}
        ):
            assert sum(r.outside_usd for r in found.runs) + total.spent_usd == everything


@given(st.lists(groups, min_size=1, max_size=12))
def test_a_saving_is_exact_or_not_known_and_never_a_guess(found: list[ChargeGroup]) -> None:
    saving = stated(found, customer(), customer("beta")).total.figures.saving
    spot = [g for g in found if g.market == "spot"]
    if any(g.resource == "other" for g in spot):
        assert saving.usd is None and "other" in saving.note
    else:
        seconds = total_usd(g.quantity for g in spot)
        paid = total_usd(g.amount_usd for g in spot)
        assert saving.usd is not None
        assert abs(saving.usd - (seconds / 3600 - paid)) < Decimal("1e-9")


def test_waste_is_booked_as_pairs_and_counted_once(tmp_path: Path) -> None:
    start = datetime(2026, 8, 1, tzinfo=UTC)
    charges = [
        Charge(
            run="acme-1",
            customer="acme",
            stage="distill",
            resource="g5.xlarge",
            market="spot",
            quantity=Decimal(900),
            unit="node-second",
            unit_price_usd=Decimal("0.0001"),
            amount_usd=Decimal("0.09"),
            started_at=start + timedelta(seconds=900 * n),
            ended_at=start + timedelta(seconds=900 * (n + 1)),
            useful="useful",
            price_source="a test",
        )
        for n in range(4)
    ]
    lost = (start + timedelta(seconds=450), start + timedelta(seconds=1350))
    charges += waste_corrections(charges, *lost, "worker lost")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(charges)
        found = stated(ledger.grouped())
    ((line,),) = (run.lines for run in found.runs)
    for one in (found.total.figures, found.runs[0].figures, line):
        assert (one.spent_usd, one.useful_usd, one.wasted_usd) == (
            Decimal("0.36"),
            Decimal("0.27"),
            Decimal("0.09"),
        )
        assert one.node_seconds == 3600
        assert one.saving.usd == Decimal("0.64")  # waste was paid for on spot, too


def test_a_saving_that_is_unknown_names_the_missing_price() -> None:
    def saving(*found: ChargeGroup) -> Figure:
        return stated(found).total.figures.saving

    known = group(market="spot", resource="g5.xlarge", amount_usd=Decimal("0.3"))
    assert saving(known) == Figure(usd=Decimal("0.7"))
    assert saving(group()) == Figure(usd=Decimal(0), note="nothing ran on spot")
    assert saving(known, group(run="acme-2")).usd == Decimal("0.7")
    unknown = saving(known, group(market="spot", resource="node", run="acme-2"))
    assert unknown == Figure(usd=None, note="no on-demand price of node is known")
    other = saving(known, group(market="spot", resource="g5.xlarge", unit="GB-month"))
    assert other.usd is None and "GB-month" in other.note
    dear = saving(group(market="spot", resource="g5.xlarge", amount_usd=Decimal("1.5")))
    assert dear.usd == Decimal("-0.5")


def test_a_budget_is_of_the_whole_run_whatever_the_period() -> None:
    months = {JULY: [group("4")], AUGUST: [group("3"), group("1", run="acme-2")]}
    found = stated(months, period=AUGUST)
    assert found.total.figures.spent_usd == 4
    assert found.customers[0].figures.budget.usd == 20
    assert found.customers[0].figures.left.usd == 12
    first, second = found.runs
    assert (first.outside_usd, first.figures.left.usd) == (4, 3)
    assert (second.outside_usd, second.figures.left.usd) == (0, 9)
    assert [str(one.month) for one in found.months] == ["2026-07", "2026-08"]
    assert [one.spent_usd for one in stated(months, period=JULY).months] == [4]


def test_left_is_negative_above_the_budget() -> None:
    assert stated([group("10.000000000001")]).total.figures.left.usd == Decimal("-1e-12")


def limits(acme: str | None = None, total: str | None = None) -> MonthLimits:
    return MonthLimits(
        customers={} if acme is None else {"acme": Decimal(acme)},
        total=None if total is None else Decimal(total),
    )


@pytest.mark.parametrize("period", [None, AUGUST])
def test_a_months_limit_is_the_budget_where_it_is_less_than_the_runs(period: Month | None) -> None:
    """Of a report of all time, too, where all charges lie in one month."""
    runs = [group("9", run=f"acme-{n}") for n in range(3)]
    found = stated(runs, period=period, limits=limits("28"))
    for customer_cost in (found.customers[0], found.total):
        assert customer_cost.figures.budget == Figure(
            usd=Decimal(28), note="budget.customer_month_usd in August 2026"
        )
        assert customer_cost.figures.left == Figure(usd=Decimal(1))
    assert [run.figures.left.usd for run in found.runs] == [1, 1, 1]
    assert "$28.00 (budget.customer_month_usd in August 2026)" in wording.sentence(found)
    (note,) = [note for note in wording.notes(found) if "limit" in note or "customer_month" in note]
    assert "acme" in note and "$28.00 (budget.customer_month_usd in August 2026)" in note
    wide = stated(runs, period=period, limits=limits("30"))
    assert wide.total.figures.budget == Figure(usd=Decimal(30))
    assert "customer_month" not in wording.sentence(wide) + "".join(wording.notes(wide))


def test_a_months_limit_counts_what_was_spent_in_that_month_alone() -> None:
    months = {JULY: [group("6")], AUGUST: [group("3"), group("4", run="acme-2")]}
    figures = stated(months, period=AUGUST, limits=limits("12")).total.figures
    assert (figures.budget.usd, figures.left.usd) == (12, 5)
    above = stated(months, period=AUGUST, limits=limits("5"))
    assert above.total.figures.left.usd == -2
    assert "$5.00 (budget.customer_month_usd" in wording.sentence(above)


def test_the_limit_of_all_customers_applies_to_the_total_only() -> None:
    both = [group("3"), group("4", run="acme-2"), group("5", customer="beta")]
    known = customer(), customer("beta"), customer("quiet")
    found = stated(both, *known, period=AUGUST, limits=limits("15", total="20"))
    acme, beta, _ = (customer_cost.figures for customer_cost in found.customers)
    assert (acme.budget.usd, acme.left.usd) == (15, 8)
    assert (beta.budget, beta.left.usd) == (Figure(usd=Decimal(10)), 5)
    total = found.total.figures
    assert total.budget == Figure(usd=Decimal(20), note="budget.total_month_usd in August 2026")
    assert total.left.usd == 8
    assert "$20.00 (budget.total_month_usd" in wording.sentence(found)
    assert [note.partition(":")[0] for note in wording.notes(found) if "month_usd" in note] == [
        "Budget of acme",
        "Budget of all",
    ]
    wide = stated(both, *known, period=AUGUST, limits=limits("15", total="25")).total.figures
    assert (wide.budget, wide.left.usd) == (Figure(usd=Decimal(25)), 13)  # what customers add up to
    alone = stated(both[:2], customer="acme", period=AUGUST, limits=limits(total="1"))
    assert alone.total.figures.budget.usd == 20


def test_over_several_months_no_monthly_limit_counts_and_a_note_explains_it() -> None:
    months = {JULY: [group("4")], AUGUST: [group("3", run="acme-2")]}
    months[AUGUST].append(group("1", customer="gone"))
    known = customer(), customer("gone", run_budget_usd="removed")
    for one in (limits("1"), limits(total="1")):
        found = stated(months, *known, limits=one)
        acme = found.customers[0].figures
        assert (acme.budget.usd, acme.left.usd) == (20, 13)
        assert any(OF_RUNS_ALONE in note for note in wording.notes(found))
    for found in (
        stated(months, *known),
        stated(months, *known, limits=limits("1"), period=JULY),
        stated(months, *known, limits=limits(total="1"), customer="acme"),
        stated({}, limits=limits("1")),
    ):
        assert not any(OF_RUNS_ALONE in note for note in wording.notes(found))


def test_without_a_run_the_month_allows_no_more_than_its_limit() -> None:
    for usd, most in (("4", "$4.00"), ("40", "$10.00")):
        figures = stated({}, period=AUGUST, limits=limits(usd)).customers[0].figures
        assert figures.budget.note == f"no run in August 2026; a run may spend {most}"


def test_an_unknown_budget_stays_unknown() -> None:
    gone = customer("gone", run_budget_usd="removed")
    found = stated([group(), group(customer="gone")], customer(), gone)
    acme, other = found.customers
    assert acme.figures.budget.usd == 10
    assert other.figures.budget == other.figures.left == Figure(usd=None, note="removed")
    assert found.total.figures.left == Figure(usd=None, note="not known of gone")
    alone = stated([group()], customer(), replace(gone, name="quiet")).total.figures
    assert alone.budget.usd == 10  # nobody of an unknown budget has spent anything


def test_without_charges_nothing_is_spent_and_no_budget_was_opened() -> None:
    for months in ({}, {JULY: [group("4")]}):
        found = stated(months, period=AUGUST)
        assert found.runs == () and found.total.figures.spent_usd == 0
        figures = found.customers[0].figures
        assert figures.budget == Figure(
            usd=None, note="no run in August 2026; a run may spend $10.00"
        )
        assert (figures.per_step.usd, figures.per_db.usd) == (None, None)
        assert found.total.figures.budget.usd is None
    assert stated({}, customer()).customers[0].figures.left.note.startswith("no run yet")


def test_a_step_and_a_db_cost_what_distillation_did_in_all_months() -> None:
    distilled = Distillation(run="acme-1", steps_kept=100, db_gained=Decimal("2.5"))
    months = {
        JULY: [group("4"), group("77", stage="encode"), group("50", run="acme-2")],
        AUGUST: [group("2"), group("-1"), group("1", useful="wasted")],
    }
    for period in (None, JULY, AUGUST):
        found = stated(months, customer(distilled=distilled), period=period)
        for one in (found.total, found.customers[0], found.runs[0]):
            assert one.figures.per_step.usd == Decimal("0.06")
            assert one.figures.per_db.usd == Decimal("2.4")
        assert "run acme-1" in found.total.figures.per_step.note
    other = next(run for run in stated(months, customer(distilled=distilled)).runs
                 if run.run == "acme-2")  # fmt: skip
    assert other.distilled is None
    assert other.figures.per_db.usd is None and "acme-1" in other.figures.per_db.note


def test_the_total_price_of_a_step_is_all_distillation_costs_over_all_steps() -> None:
    def of(name: str, steps: int, db_gained: str | None) -> Customer:
        gained = None if db_gained is None else Decimal(db_gained)
        return customer(
            name, distilled=Distillation(run="acme-1", steps_kept=steps, db_gained=gained)
        )

    both = [group("6"), group("2", customer="beta")]
    found = stated(both, of("acme", 100, "1"), of("beta", 300, "3")).total.figures
    assert (found.per_step.usd, found.per_db.usd) == (Decimal("0.02"), 2)
    assert "2 runs" in found.per_step.note
    found = stated(both, of("acme", 100, "1"), of("beta", 0, None)).total.figures
    assert found.per_step.usd == Decimal("0.08")
    assert found.per_db.usd is None and "fewer than two validations" in found.per_db.note


@pytest.mark.parametrize(
    ("distilled", "note"),
    [
        ("its history is gone", "its history is gone"),
        (Distillation(run="acme-1", steps_kept=0, db_gained=Decimal(0)), "no step was kept"),
        (Distillation(run="acme-9", steps_kept=5, db_gained=Decimal(1)), "run acme-9"),
    ],
)
def test_why_a_step_has_no_price(distilled: Distillation | str, note: str) -> None:
    figures = stated([group()], customer(distilled=distilled)).customers[0].figures
    assert figures.per_step.usd is None and note in figures.per_step.note
    assert figures.per_db.usd is None and figures.per_db.note


def test_a_trillionth_and_a_million_dollars() -> None:
    found = stated([group("1e-12"), group("1000000", run="acme-2")]).total.figures
    assert str(found.spent_usd) == "1000000.000000000001"


def test_runs_at_once_are_apart_and_in_order() -> None:
    later = datetime(2026, 8, 1, 10, 30, tzinfo=UTC)
    found = stated(
        [
            group("2", run="b", stage="encode", first_at=later),
            group("3", run="a", customer="beta"),
            group("1", run="b"),
            group("5", run="b", market="spot", resource="g5.xlarge", first_at=later),
        ],
        customer("beta"),
        customer(),
    )
    assert [(run.customer, run.run) for run in found.runs] == [("beta", "a"), ("acme", "b")]
    assert [(line.stage, line.market) for line in found.runs[1].lines] == [
        ("distill", "local"),
        ("distill", "spot"),
        ("encode", "local"),
    ]


def test_charges_of_an_unknown_customer_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="beta"):
        stated([group(customer="beta")])


def test_a_history_belongs_to_the_only_run_charged_during_it() -> None:
    nine, ten, noon = (datetime(2026, 8, 1, hour, tzinfo=UTC) for hour in (9, 10, 12))
    found = [
        group(),
        group(first_at=noon, last_at=noon + timedelta(hours=1)),
        group(run="encoding", stage="encode", first_at=nine, last_at=noon),
        group(run="other", customer="beta", first_at=nine, last_at=noon),
    ]
    assert run_that_covers(found, "acme", ten, noon) == "acme-1"
    assert run_that_covers(found, "acme", nine, noon) is None
    assert run_that_covers([*found, group(run="twin")], "acme", ten, ten) is None
    assert run_that_covers([], "acme", ten, noon) is None


def test_charges_at_an_old_price_have_a_note_with_the_reason() -> None:
    """Of two runs one, and of that its spot machine."""
    old = f"{OLD_PRICE} 2026-07-31 09:00 UTC: AWS says ExpiredToken"
    found = stated(
        [
            group("2", price_source=f"EC2 spot price history, g5.xlarge; {old}"),
            group("-1", price_source=f"EC2 spot price history, g5.xlarge; {old}"),
            group("1", useful="wasted", price_source=wasted(f"a list; {old}", "worker lost")),
            group("1", stage="gate"),
            group("4", run="acme-2"),
        ]
    )
    first, second = found.runs
    assert (first.old_usd, first.old_prices) == (Decimal(2), (old,))
    assert (second.old_usd, second.old_prices) == (Decimal(0), ())
    (note,) = [note for note in wording.notes(found) if "old price" in note]
    assert note == f"Run acme-1 of acme was charged $2.00 at old prices: {old}."
