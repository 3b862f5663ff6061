"""What is gathered around the charges, and what is not known where something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import configs
from tests.report.costs import made_up
from turbo_vaed.costs import Ledger, total_usd
from turbo_vaed.costs.customer_costs import CustomerCost
from turbo_vaed.costs.money import difference_usd
from turbo_vaed.costs.months import Month, months_between
from turbo_vaed.errors import UserError
from turbo_vaed.gate import Verdict
from turbo_vaed.report.costs.facts import Gathered, History, gather

HISTORY = "work/acme/distill/history.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return made_up.checkout(tmp_path)


@pytest.fixture
def ledger(root: Path) -> Iterator[Ledger]:
    with made_up.ledger(root) as found:
        yield found


@pytest.fixture
def gathered(root: Path, ledger: Ledger) -> Callable[..., Gathered]:
    def make(**options: Any) -> Gathered:
        return gather(root, ledger, on_demand_usd_per_hour=made_up.PRICES.get, **options)

    return make


def customer_cost(found: Gathered, name: str) -> CustomerCost:
    return next(one for one in found.statement.customers if one.name == name)


@pytest.mark.parametrize("number", range(4, 11))
@pytest.mark.parametrize("customer", [None, "acme", "gone"])
def test_a_month_has_the_figures_of_all_charges_of_all_time(
    ledger: Ledger, gathered: Callable[..., Gathered], number: int, customer: str | None
) -> None:
    ledger.add(made_up.charge("acme-1", "gate", "10-05 00:00", 60, made_up.ON_DEMAND))
    month = Month(year=2026, number=number)
    found = gathered(period=month, customer=customer).statement
    charges = ledger.charges(customer=customer)
    runs = {charge.run for charge in charges if Month.of(charge.started_at) == month}
    assert {run.run for run in found.runs} == runs
    for run in found.runs:
        of_it = [charge for charge in charges if charge.run == run.run]
        inside = [charge for charge in of_it if Month.of(charge.started_at) == month]
        assert run.figures.charges == len(inside)
        assert run.figures.spent_usd == total_usd(c.amount_usd for c in inside)
        whole = total_usd(c.amount_usd for c in of_it)
        assert run.outside_usd == difference_usd(whole, run.figures.spent_usd)
        assert run.distill_usd == total_usd(c.amount_usd for c in of_it if c.stage == "distill")
    last = min(month, Month.of(max(charge.started_at for charge in charges)))
    first = min(charge.started_at for charge in charges)
    assert [one.month for one in found.months] == [
        one for one in months_between(first, last.since) if one <= month
    ]
    for one in found.months:
        its = [charge for charge in charges if Month.of(charge.started_at) == one.month]
        assert one.spent_usd == total_usd(c.amount_usd for c in its)
        assert one.wasted_usd == total_usd(c.amount_usd for c in its if c.useful == "wasted")


def test_other_months_are_read_only_for_runs_of_the_month(
    ledger: Ledger, gathered: Callable[..., Gathered], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    grouped = Ledger.grouped

    def listening(self: Ledger, **options: Any) -> Any:
        found = grouped(self, **options)
        read.extend(f"{group.run} {group.first_at:%m}" for group in found)
        return found

    monkeypatch.setattr(Ledger, "grouped", listening)
    gathered(period=Month(year=2026, number=7))
    assert set(read) == {"acme-1 07", "acme-1 08"}
    read.clear()
    gathered(period=Month(year=2026, number=6))
    assert read == []


def test_customers_in_params_come_first_and_removed_ones_last(
    gathered: Callable[..., Gathered],
) -> None:
    found = gathered()
    names = ["acme", "beta", "idle", "tiny", "whale", "gone"]
    assert [one.name for one in found.known] == names
    assert [one.name for one in found.statement.customers] == names
    gone = found.known[-1]
    assert (gone.is_listed, gone.use_case) == (False, None)
    assert gathered(customer="gone").statement.total.runs == 1


def test_a_history_is_matched_to_the_run_charged_during_it(
    gathered: Callable[..., Gathered],
) -> None:
    found = gathered()
    runs = {run.run: run.distilled for run in found.statement.runs}
    assert runs["acme-1"] is None
    acme = runs["acme-2"]
    assert acme is not None
    assert (acme.steps_kept, str(acme.db_gained)) == (8, "5.25")  # of 24, 28.5, 29.25 and 29 dB
    tiny = customer_cost(found, "tiny").figures.per_step
    assert tiny.usd is None and "2026-08-01 01:00 UTC" in tiny.note


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, ""),
        ("{", "CorruptFile"),
        ("[]", "CorruptFile"),
        ("{}", "KeyError"),
        ('{"steps": [{"at": 1e300}], "steps_done": 1}', "Error"),
        ('{"steps": [{"step": 1, "val_psnr": 20.0}], "steps_done": 1}', ""),
        ('{"steps": [], "steps_done": 0}', ""),
    ],
)
def test_an_unreadable_history_ends_no_report(
    root: Path, gathered: Callable[..., Gathered], text: str | None, reason: str
) -> None:
    path = root / HISTORY
    path.unlink()
    if text is not None:
        path.write_text(text)
    figures = customer_cost(gathered(), "acme").figures
    assert figures.per_step.usd is None
    assert "distill/history.json" in figures.per_step.note and reason in figures.per_step.note
    assert figures.per_db.usd is None and figures.spent_usd > 0


def test_validations_that_are_not_numbers_count_as_no_gain(
    root: Path, gathered: Callable[..., Gathered]
) -> None:
    document = json.loads((root / HISTORY).read_text())
    for row, psnr in zip(document["steps"], (float("nan"), None, 25.0, float("inf")), strict=False):
        row["val_psnr"] = psnr
    for row in document["steps"][4:]:
        row.pop("val_psnr", None)
    made_up.write(root / HISTORY, document)
    found = gathered(customer="acme")
    history = found.known[0].history
    assert isinstance(history, History)
    assert (history.best_psnr, history.db_gained) == (25.0, None)
    assert found.statement.total.figures.per_db.usd is None
    assert found.statement.total.figures.per_step.usd is not None


def test_invalid_params_leave_the_budget_unknown_and_not_the_report(
    root: Path, gathered: Callable[..., Gathered]
) -> None:
    document = configs.read(root)
    document["customers"]["beta"]["budget"]["run_usd"] = -1
    configs.write(root, document)
    found = gathered()
    assert "budget.run_usd" in customer_cost(found, "beta").figures.budget.note
    assert customer_cost(found, "acme").figures.budget.usd == 25


@pytest.mark.parametrize(
    ("totals", "most"),
    [
        ({}, 850_000),
        ({"beta": 900_000}, 900_000),
        ({"beta": None}, 900_031),  # no limit: what the customers add up to
        ({"idle": -1}, 850_000),  # whose params are not valid and who can spend nothing
    ],
)
def test_the_limit_of_the_total_is_the_largest_of_any_customer(
    root: Path, gathered: Callable[..., Gathered], totals: dict[str, int | None], most: int
) -> None:
    document = configs.read(root)
    for name, usd in totals.items():
        document["customers"][name]["budget"]["total_month_usd"] = usd
    configs.write(root, document)
    found = gathered(period=Month(year=2026, number=8)).statement
    assert found.total.figures.budget.usd == most


@pytest.mark.parametrize("name", ["nobody", "", "../acme", "a/b"])
def test_an_unknown_customer_is_a_users_mistake(
    gathered: Callable[..., Gathered], name: str
) -> None:
    with pytest.raises(UserError, match="acme, beta, idle"):
        gathered(customer=name)


def test_a_name_in_the_ledger_is_never_a_path(
    root: Path, ledger: Ledger, gathered: Callable[..., Gathered]
) -> None:
    (root / "work" / "x").mkdir()
    name = "x/../acme"  # whose history and verdict are there
    ledger.add(replace(next(iter(made_up.charges())), customer=name, run="elsewhere"))
    known = next(one for one in gathered().known if one.name == name)
    assert isinstance(known.history, str) and isinstance(known.verdict, str)
    assert gathered(customer=name).statement.total.runs == 1


def test_an_empty_ledger_and_a_month_without_charges(
    root: Path, tmp_path: Path, gathered: Callable[..., Gathered]
) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/empty.db") as empty:
        found = gather(root, empty, on_demand_usd_per_hour=made_up.PRICES.get).statement
    assert found.runs == found.months == ()
    assert len(found.customers) == 5
    quiet = gathered(period=Month(year=2026, number=6)).statement
    assert (quiet.runs, quiet.total.figures.spent_usd) == ((), 0)
    assert [str(one.month) for one in quiet.months] == ["2026-05", "2026-06"]


def test_months_end_with_the_last_that_has_a_charge(gathered: Callable[..., Gathered]) -> None:
    months = [str(one.month) for one in gathered().statement.months]
    assert months == ["2026-05", "2026-06", "2026-07", "2026-08"]  # the whale's ends in September


def test_a_verdict_is_read_and_a_corrupt_one_is_ignored(
    root: Path, gathered: Callable[..., Gathered]
) -> None:
    acme, _, _, tiny = gathered().known[:4]
    assert isinstance(acme.verdict, Verdict) and acme.verdict.result == "passes"
    assert acme.retention == pytest.approx(30.5 / 31)
    assert isinstance(tiny.verdict, Verdict) and tiny.verdict.result == "fails"
    path = root / "work/acme/gate/verdict.json"
    path.write_text(path.read_text().replace("0.98", "1.98"))
    path.write_text(path.read_text()[:-9])
    acme = gathered().known[0]
    assert isinstance(acme.verdict, str) and "CorruptFile" in acme.verdict
    assert isinstance(acme.retention, str)
