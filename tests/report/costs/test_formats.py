"""Tables, CSV and JSON of a statement."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tests import configs
from tests.report.costs import made_up
from tests.report.costs.golden import AUGUST, table_text
from turbo_vaed.costs import Ledger, total_usd
from turbo_vaed.costs.customer_costs import Statement
from turbo_vaed.costs.money import format_usd, plain
from turbo_vaed.costs.months import Month
from turbo_vaed.report.costs import formats, portfolio, wording
from turbo_vaed.report.costs.facts import gather
from turbo_vaed.report.costs.formats import (
    CSV_COLUMNS,
    LEAST_WIDTH,
    csv_text,
    json_document,
    json_text,
)
from turbo_vaed.report.costs.page import costs_page


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.checkout(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def everyone(root: Path) -> Statement:
    return made_up.gathered(root).statement


def of(root: Path, tmp_path: Path, *charges: made_up.Charge, customer: str) -> Statement:
    """A statement of a ledger that holds these charges alone."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(charges)
        return gather(
            root, ledger, on_demand_usd_per_hour=made_up.PRICES.get, customer=customer
        ).statement


def rows(statement: Statement) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(statement), newline="")))


def test_csv_holds_every_line_with_all_its_digits(everyone: Statement) -> None:
    text = csv_text(everyone)
    assert text.endswith("\r\n") and text.count("\n") == text.count("\r\n")  # RFC 4180
    found = rows(everyone)
    assert list(found[0]) == list(CSV_COLUMNS)
    assert len(found) == sum(len(run.lines) for run in everyone.runs)
    for name in ("spent_usd", "useful_usd", "wasted_usd"):
        total = total_usd(Decimal(row[name]) for row in found)
        assert total == getattr(everyone.total.figures, name)
        assert not any("E" in row[name].upper() for row in found)
    unknown = next(row for row in found if row["customer"] == "beta" and row["stage"] == "distill")
    assert unknown["spot_saving_usd"] == ""
    assert "zz9.huge" in unknown["note"]
    credit = next(row for row in found if row["stage"] == "reconcile")
    assert credit["spent_usd"] == "-0.05"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "  =1", "\n=1"])
def test_no_csv_cell_is_a_formula(root: Path, tmp_path: Path, text: str) -> None:
    one = replace(next(made_up.charges()), run=text, stage=text)
    (row,) = rows(of(root, tmp_path, one, customer="acme"))
    assert row["run"] == row["stage"] == f"'{text}"


@pytest.mark.parametrize("text", ["acme-1", "1-2", "a=b", 'a "b", c\r\nd', "x@y"])
def test_an_escaped_csv_cell_is_read_back_as_it_was(root: Path, tmp_path: Path, text: str) -> None:
    one = replace(next(made_up.charges()), run=text)
    (row,) = rows(of(root, tmp_path, one, customer="acme"))
    assert row["run"] == text


def test_json_is_one_document_with_money_as_text(everyone: Statement) -> None:
    found = json.loads(json_text(everyone))
    assert list(found) == [
        "sentence", "period", "customer", "summary", "total", "runs", "months", "notes"
    ]  # fmt: skip
    assert found["total"]["spent_usd"] == plain(everyone.total.figures.spent_usd)

    def check(value: object, key: str = "") -> None:
        if isinstance(value, dict):
            for name, one in value.items():
                check(one, name)
        elif isinstance(value, list):
            for one in value:
                check(one, key)
        else:
            assert not isinstance(value, float)
            if "usd" in key:
                assert value is None or isinstance(value, str)

    check({key: value for key, value in found.items()})
    by_name = {row["customer"]: row for row in found["summary"]}
    for row in [*found["summary"], *found["runs"], found["total"]]:
        for name in ("budget_usd", "left_usd", "spot_saving_usd", "usd_per_db"):
            assert (row[name] is None) == (name in row["unknown"])
    assert "zz9.huge" in by_name["beta"]["unknown"]["spot_saving_usd"]
    assert by_name["tiny"]["spent_usd"] == "0.000000000001"


@pytest.mark.parametrize("width", [120, 100, 80, 50])
def test_a_table_leaves_nothing_out_however_narrow(everyone: Statement, width: int) -> None:
    def letters(at_width: int) -> Counter[str]:
        return Counter("".join(table_text(everyone, at_width).replace("─", "").split()))

    assert letters(width) == letters(300)
    longest = max(len(line) for line in table_text(everyone, width).splitlines())
    assert longest <= max(width, LEAST_WIDTH)
    for amount in ("$1,000,000.00", "-$100,000.00", "<$0.000001", "$4.32", "-$0.05"):
        assert amount in table_text(everyone, 300)


def test_every_dash_is_explained(everyone: Statement) -> None:
    notes = wording.notes(everyone)
    for customer_cost in everyone.customers:
        for name, figure in wording.FIGURES:
            found = figure(customer_cost.figures)
            if found.usd is None:
                assert any(customer_cost.name in n and name in n and found.note in n for n in notes)


def test_a_reason_shared_by_many_is_printed_once() -> None:
    found = wording.unknown_figures(
        [(f"c{n}", figure, "gone") for n in range(20) for figure in ("budget", "left")]
        + [("c3", "best", "gone too"), ("c4", "budget", "other")]
    )
    shared, *others = found
    assert re.findall(r"c\d+", shared) == [f"c{n}" for n in range(wording.MOST_NAMED - 1)]
    assert "13 others" in shared and "budget" in shared and "left" in shared
    assert [("c3" in note, "c4" in note) for note in others] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({"customer": "idle"}, []),
        ({"customer": "acme", "period": AUGUST}, ["$1.31", "$18.69", "$20.00", "$2.16"]),
        ({"customer": "acme"}, ["$2.40", "$22.60", "$25.00", "$0.36", "15.0 %", "$4.32"]),
        ({"customer": "whale"}, ["$1,000,000.00", "$100,000.00", "$900,000.00"]),
        ({"customer": "gone"}, ["$0.108"]),
    ],
)
def test_the_sentence_has_spending_budget_waste_and_saving(
    root: Path, options: dict[str, object], figures: list[str]
) -> None:
    """Its words stand in tests/golden/costs."""
    found = wording.sentence(made_up.gathered(root, **options).statement)
    assert re.findall(r"\$[\d,.]*\d|[\d.]+ %", found) == figures
    assert str(options["customer"]) in found


@pytest.mark.parametrize("period", [None, Month(year=2026, number=11)])
def test_every_form_has_what_a_months_limit_leaves(tmp_path: Path, period: Month | None) -> None:
    root = made_up.checkout(tmp_path / "checkout")
    document = configs.read(root)
    document["customers"]["acme"]["budget"] = {"run_usd": 95, "customer_month_usd": 100}
    configs.write(root, document)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(
            made_up.charge(f"acme-{n}", "distill", f"11-0{n} 00:00", 3600, Decimal(30))
            for n in (1, 2, 3)
        )
        of_acme, of_all = (
            gather(root, ledger, on_demand_usd_per_hour={}.get, customer=name, period=period)
            for name in ("acme", None)
        )
    for found in (of_acme, of_all):
        text, page = table_text(found.statement, 300), costs_page(found.statement)
        sentence = wording.sentence(found.statement)
        assert re.search(r"\$10\.00 .*\$100\.00 \(budget\.customer_month_usd in Nov", sentence)
        assert sentence in text and sentence in page
        assert re.search(r"acme +3 +\$90.00 +\$100.00 +\$10.00 ", text)
        assert page.count('<td class="num">$100.00</td><td class="num">$10.00</td>') >= 1
        document = json_document(found.statement)
        for row in (document["summary"][0], document["total"]):
            assert (row["budget_usd"], row["left_usd"]) == ("100", "10")
    champions, returns = made_up.champions(of_all), made_up.returns(of_all)
    for row in portfolio.table_rows(of_all, champions, returns):
        if row["name"] in ("acme", "all"):
            assert (row["budget"], row["left"]) == ("$100.00", "$10.00")


def test_waste_of_more_than_was_spent_is_no_share(root: Path, tmp_path: Path) -> None:
    base = next(made_up.charges())
    credit = replace(base, quantity=-base.quantity, amount_usd=-base.amount_usd)
    statement = of(root, tmp_path, replace(base, useful="wasted"), credit, customer="acme")
    assert statement.total.figures.spent_usd == 0
    assert "$0.012" in wording.sentence(statement) and "%" not in wording.sentence(statement)


def test_spot_that_cost_more_than_on_demand_is_no_saving(root: Path, tmp_path: Path) -> None:
    dear = made_up.charge(
        "acme-1", "distill", "08-01 00:00", 3600, Decimal("1.58"), market="spot",
        resource="g5.xlarge",
    )  # fmt: skip
    statement = of(root, tmp_path, dear, customer="acme")
    sentence = wording.sentence(statement)
    assert "$0.50" in sentence and "saved" not in sentence


def test_a_terminal_prints_the_most_expensive_of_many_runs(
    everyone: Statement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MOST_RUNS", 2)
    dearest = sorted(everyone.runs, key=lambda run: run.figures.spent_usd)[-2:]
    rest = total_usd(run.figures.spent_usd for run in everyone.runs if run not in dearest)
    text = table_text(everyone, 120)
    for run in everyone.runs:
        assert (f"{run.run}, 2026-" in text) == (run in dearest)
    assert re.search(rf"\b{len(everyone.runs) - 2} more .*{re.escape(format_usd(rest))}", text)
