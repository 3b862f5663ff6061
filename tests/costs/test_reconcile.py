"""The ledger against the bill: every difference is reported, and they add up."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.bills import AFTER, NOVEMBER, bill, billed, charge
from turbo_vaed.costs import Charge, Ledger, total_usd
from turbo_vaed.costs.bill import Bill, BillRow
from turbo_vaed.costs.months import usd_within
from turbo_vaed.costs.reconcile import (
    Reconciliation,
    Row,
    correction,
    document,
    reconcile,
    remarks,
    table,
)
from turbo_vaed.costs.waste import waste_corrections

HOUR = timedelta(hours=1)


def only(found: Reconciliation) -> Row:
    (row,) = found.rows
    return row


@pytest.mark.parametrize(
    ("ledger", "billed_usd", "what"),
    [
        ("50", "50", "agrees"),
        ("50.50", "50", "agrees"),  # 1 % and 0.50 USD, and neither is passed
        ("50.500000000001", "50", "differs"),
        ("49.50", "50", "agrees"),
        ("49.499999999999", "50", "differs"),
        ("100.51", "100", "differs"),  # within 1 %, above 0.50 USD
        ("10.11", "10", "differs"),  # above 1 %, within 0.50 USD
        ("10.10", "10", "agrees"),
        ("0.01", "0", "differs"),
        ("0", "0", "agrees"),
    ],
)
def test_a_difference_above_either_limit_is_reported(
    ledger: str, billed_usd: str, what: str
) -> None:
    row = only(reconcile([charge(ledger)], bill(billed(billed_usd))))
    assert row.what == what
    assert row.difference_usd == Decimal(ledger) - Decimal(billed_usd)


def test_runs_that_only_the_bill_or_only_the_ledger_has_are_rows() -> None:
    found = reconcile([charge("0.02")], bill(billed("0.03", run="acme-2"), billed("9", "b", "b-1")))
    assert [(row.run, row.what, row.difference_usd) for row in found.rows] == [
        ("b-1", "bill only", -9),
        ("acme-2", "bill only", Decimal("-0.03")),
        ("acme-1", "ledger only", Decimal("0.02")),
    ]


def test_runs_of_two_customers_with_one_name_are_two_rows() -> None:
    found = reconcile([charge("1")], bill(billed("1", customer="other")))
    assert {(row.customer, row.what) for row in found.rows} == {
        ("acme", "ledger only"),
        ("other", "bill only"),
    }


@pytest.mark.parametrize(
    ("ledger", "billed_usd", "percent"),
    [("11", "10", "10"), ("10", "30", "-66.67"), ("1", "-2", "150"), ("1", "0", None)],
)
def test_percent_is_of_the_bill(ledger: str, billed_usd: str, percent: str | None) -> None:
    row = only(reconcile([charge(ledger)], bill(billed(billed_usd))))
    assert row.difference_percent == (None if percent is None else Decimal(percent))


def test_a_charge_over_midnight_counts_by_its_time() -> None:
    one = charge("4", started_at=NOVEMBER.until - HOUR, ended_at=NOVEMBER.until + 3 * HOUR)
    row = only(reconcile([one], bill(billed("1"))))
    assert (row.ledger_usd, row.what) == (1, "agrees")


def test_a_run_of_another_month_is_no_row() -> None:
    touching = charge("4", started_at=NOVEMBER.since - HOUR, ended_at=NOVEMBER.since)
    assert reconcile([touching], bill()).rows == ()


def test_waste_does_not_change_what_is_compared() -> None:
    one = charge("3", started_at=NOVEMBER.until - HOUR, ended_at=NOVEMBER.until + 2 * HOUR)
    pairs = waste_corrections([one], one.started_at + HOUR / 7, one.ended_at - HOUR / 3, "lost")
    assert pairs
    assert only(reconcile([one, *pairs], bill(billed("1")))).ledger_usd == 1


def test_local_charges_are_apart() -> None:
    charges = [charge("1"), charge("5", market="local"), charge("2", market="on-demand")]
    found = reconcile(charges, bill(billed("3")))
    assert only(found).what == "agrees"
    assert [(row.customer, row.run, row.usd) for row in found.not_billed] == [("acme", "acme-1", 5)]
    assert remarks(found) == ["Not billed by AWS: 5.00 USD of market local in 1 run."]


def test_a_run_billed_that_the_ledger_has_as_local() -> None:
    final = bill(billed("3"))
    row = only(reconcile([charge("3", market="local")], final))
    assert row.what == "bill only"
    assert "3.00 USD of this run as local" in row.note
    assert correction(row, final) is None  # it would be charged twice


def test_untagged_rows_are_no_runs() -> None:
    rows = (billed("50"), billed("2", None, None), billed("0.25", "acme", None))
    found = reconcile([charge("50")], bill(*rows))
    assert found.sentence == (
        "The ledger and the bill of 2026-11 agree within 1 % / 0.50 USD in 1 of 1 runs; "
        "2.25 USD of the bill is untagged"
    )
    assert [(r["customer"], r["run"]) for r in document(found, every_row=False)["rows"]] == [
        ("untagged", "untagged"),
        ("acme", "untagged"),
    ]


def test_rows_that_could_not_be_read_stay_apart() -> None:
    found = reconcile(
        [charge("1")],
        bill(billed("1"), billed("2", None, None, "odd"), billed("0", None, None, "odder")),
    )
    assert [(row.bill_usd, row.problem, row.what) for row in found.rows] == [
        (2, "odd", "bill only"),
        (0, "odder", "bill only"),
        (1, "", "agrees"),
    ]


def test_a_row_with_a_problem_never_agrees() -> None:
    final = bill(billed("-1", problem="negative"))
    row = only(reconcile([charge("-1")], final))
    assert (row.difference_usd, row.what) == (0, "differs")
    assert correction(row, final) is None


def test_the_sentence_adds_differences_up_whatever_their_sign() -> None:
    charges = [charge("10"), charge("20", run="acme-2"), charge("5", run="acme-3")]
    found = reconcile(
        charges, bill(billed("12"), billed("18", run="acme-2"), billed("5", run="acme-3"))
    )
    assert found.difference_usd == 0
    assert found.sentence == (
        "The ledger and the bill of 2026-11 agree within 1 % / 0.50 USD in 1 of 3 runs; "
        "2 differ by 4.00 USD"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"read_at": NOVEMBER.until - HOUR}, "Partial: 2026-11 is not over.*24 hours"),
        ({"read_at": NOVEMBER.until + HOUR}, "last day of 2026-11 may be missing"),
        ({"is_estimated": True}, "an estimate"),
        ({"rows": ()}, "activated as cost allocation tags"),
    ],
)
def test_a_bill_that_may_still_change_has_a_caveat(changes: dict[str, Any], expected: str) -> None:
    found = reconcile([charge("1")], bill(**{"rows": (billed("1"),), **changes}))
    (caveat,) = found.caveats
    assert re.search(expected, caveat)


def test_a_final_bill_has_no_caveats_and_books_nothing_before() -> None:
    rows = (billed("3"),)
    for changes in ({"read_at": NOVEMBER.until - HOUR}, {"is_estimated": True}):
        early = bill(*rows, **changes)
        assert correction(only(reconcile([charge("1")], early)), early) is None
    found = reconcile([charge("1")], bill(*rows))
    assert found.caveats == ()
    assert correction(only(found), found.bill) is not None


NAMES = st.sampled_from(["a", "b", "c"])
USD = st.decimals(min_value="-1e6", max_value="1e6", places=12)
CHARGES = st.lists(
    st.builds(
        lambda usd, customer, run, market, hours: charge(
            usd,
            customer=customer,
            run=run,
            market=market,
            started_at=NOVEMBER.until - 2 * HOUR,
            ended_at=NOVEMBER.until + (hours - 2) * HOUR,
        ),
        USD,
        NAMES,
        NAMES,
        st.sampled_from(["spot", "on-demand", "local"]),
        st.integers(0, 5),
    ),
    max_size=8,
)
BILLS = st.dictionaries(st.tuples(st.none() | NAMES, st.none() | NAMES), USD, max_size=8).map(
    lambda found: bill(*(billed(usd, *key) for key, usd in found.items()))
)


def in_the_month(charges: Sequence[Charge], *, local: bool) -> Decimal:
    parts = (usd_within(c, NOVEMBER) for c in charges if (c.market == "local") is local)
    return total_usd(part for part in parts if part is not None)


@given(CHARGES, BILLS)
def test_differences_add_up_to_ledger_less_bill(charges: list[Charge], final: Bill) -> None:
    found = reconcile(charges, final)
    ledger_usd = in_the_month(charges, local=False)
    bill_usd = total_usd(row.usd for row in final.rows)
    assert (found.ledger_usd, found.bill_usd) == (ledger_usd, bill_usd)
    assert total_usd(row.difference_usd for row in found.rows) == ledger_usd - bill_usd
    assert found.difference_usd == ledger_usd - bill_usd
    assert found.not_billed_usd == in_the_month(charges, local=True)
    keys = [(row.customer, row.run) for row in found.rows]
    assert len(set(keys)) == len(keys)
    sizes = [abs(row.difference_usd) for row in found.rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in found.rows:
        differs = abs(row.difference_usd) > Decimal("0.5")
        differs |= abs(row.difference_usd) * 100 > abs(row.bill_usd)
        assert (row.what != "agrees") is differs
    assert len(table(found, every_row=False)) == (len(found.differing) + 1) * bool(found.differing)


@pytest.mark.slow
@settings(max_examples=25)
@given(CHARGES, BILLS)
def test_after_its_corrections_the_ledger_agrees(
    tmp_path_factory: pytest.TempPathFactory, charges: list[Charge], final: Bill
) -> None:
    """Booked in a real ledger, twice, since a charge that is there already is no second one."""
    path = tmp_path_factory.getbasetemp() / f"{uuid.uuid4().hex}.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.add_all(charges)
        before = ledger.charges()
        found = reconcile(ledger.charges(since=NOVEMBER.since, until=NOVEMBER.until), final)
        assert ledger.charges() == before
        corrections = {(r.customer, r.run): correction(r, final) for r in found.differing}
        for _ in range(2):
            ledger.add_all(one for one in corrections.values() if one is not None)
        again = reconcile(ledger.charges(since=NOVEMBER.since, until=NOVEMBER.until), final)
    for row in again.differing:
        assert corrections[row.customer, row.run] is None
        assert not row.is_run or row.is_local_in_the_ledger


def test_the_document_holds_what_would_be_booked() -> None:
    found = reconcile([charge("1")], bill(billed("3.25"), billed("1", run="acme-9"), requests=2))
    written = document(found, every_row=False)
    row = written["rows"][0]
    assert (row["ledger_usd"], row["bill_usd"], row["difference_usd"]) == ("1", "3.25", "-2.25")
    assert row["difference_percent"] == "-69.23"
    assert row["correction"] == {
        "run": "acme-1",
        "customer": "acme",
        "stage": "bill",
        "resource": "AWS",
        "market": "on-demand",
        "quantity": "2.25",
        "unit": "USD",
        "unit_price_usd": "1",
        "amount_usd": "2.25",
        "started_at": "2026-11-30T23:59:59.999999+00:00",
        "ended_at": "2026-11-30T23:59:59.999999+00:00",
        "useful": "useful",
        "price_source": "AWS bill of 2026-11",
    }
    assert written["totals"] == {
        "rows": 2,
        "rows_that_differ": 2,
        "ledger_usd": "1",
        "bill_usd": "4.25",
        "difference_usd": "-3.25",
        "not_billed_usd": "0",
    }
    assert written["cost_explorer_usd"] == "0.02"
    assert "append only" in written["corrections"]


def test_rows_that_agree_are_shown_when_asked_for() -> None:
    found = reconcile([charge("1")], bill(billed("1"), read_at=AFTER))
    assert (table(found, every_row=False), document(found, every_row=False)["rows"]) == ([], [])
    assert [row["run"] for row in table(found, every_row=True)] == ["acme-1", "1"]
    assert [row["what"] for row in document(found, every_row=True)["rows"]] == ["agrees"]


def test_bill_rows_are_values() -> None:
    with pytest.raises(AttributeError):
        BillRow(customer="a", run="b", usd=Decimal(1)).usd = Decimal(2)  # type: ignore[misc]


def test_a_bucket_is_billed_to_the_project_and_to_no_run() -> None:
    """With what was carried out of it. What a run's machine sent is the run's own; a disk of this
    machine is not billed at all."""
    kept = [
        charge("2", resource="bucket (checkpoints)"),
        charge("1", resource="transfer (checkpoints)", run="acme-2"),
        charge("5"),
        charge("4", resource="transfer (results)"),
    ]
    disk = charge("7", resource="disk (clip)", market="local")
    shared = replace(billed("3"), customer=None, run=None)
    found = reconcile([*kept, disk], bill(billed("9"), shared))
    assert not found.differing and found.not_billed_usd == 7
    assert "3.00 USD of the bill is untagged" in found.sentence
    alone = reconcile(kept, bill(billed("9")))
    (row,) = alone.differing
    assert (row.customer, row.run, row.what, row.ledger_usd) == (None, None, "ledger only", 3)
    assert "untagged" not in alone.sentence
