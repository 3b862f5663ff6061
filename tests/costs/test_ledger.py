from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.costs.charges import START, charge
from tests.costs.conftest import Postgres
from turbo_vaed.costs import Charge, Ledger, total_usd
from turbo_vaed.costs.db.schema import CHARGES
from turbo_vaed.errors import UserError

WIDE = Context(prec=60)


def rows_of(ledger: Ledger, statement: str) -> list[Any]:
    """What a statement of somebody else's gives in the ledger's database."""
    with ledger._engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def test_a_charge_comes_back_as_it_went_in(url: str) -> None:
    first, second = charge(0), charge(15, stage="encode", useful="wasted")
    with Ledger.open(url) as ledger:
        assert ledger.add(second)
        assert ledger.add(first)
    with Ledger.open(url) as again:
        assert again.charges() == (first, second)
        assert again.total() == first.amount_usd + second.amount_usd


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ledger]:
    """One ledger for all examples of a property; each has a run of its own."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('shared')}/ledger.db"
    else:
        url = request.getfixturevalue("postgres").new_database()
    with Ledger.open(url) as ledger:
        yield ledger


NUMBERS = st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: Decimal(n).scaleb(-18, WIDE))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(NUMBERS | st.decimals(-(10**6), 10**6, places=12), max_size=20))
def test_no_digit_is_lost(shared: Ledger, numbers: list[Decimal]) -> None:
    run = uuid.uuid4().hex
    charges = [
        charge(n, run=run, quantity=Decimal(1), unit_price_usd=usd, amount_usd=usd)
        for n, usd in enumerate(numbers)
    ]
    shared.add_all(charges)
    assert shared.charges(run=run) == tuple(charges)
    assert shared.total(run=run) == total_usd(numbers)


def test_numbers_come_back_without_trailing_zeros(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(charge(quantity=Decimal("15.000")))
        assert str(ledger.charges()[0].quantity) == "15"
        assert str(ledger.total()) == "0.000333333333"


def test_numbers_are_kept_exactly(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(charge())
        kept = "text" if url.startswith("sqlite") else "numeric"
        typeof = "typeof" if url.startswith("sqlite") else "pg_typeof"
        for name in ("amount_usd", "quantity", "unit_price_usd"):
            assert rows_of(ledger, f"SELECT CAST({typeof}({name}) AS TEXT) FROM charges") == [
                (kept,)
            ]


def test_the_same_charge_twice_is_one(url: str) -> None:
    one = charge()
    same = charge(
        quantity=Decimal("15.000"),
        started_at=START.astimezone(timezone(timedelta(hours=9))),
    )
    with Ledger.open(url) as ledger:
        assert ledger.add(one) is True
        assert ledger.add(one) is False
        assert ledger.add(same) is False
        assert ledger.add_all([one, charge(15), same]) == 1
        assert len(ledger.charges()) == 2


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Charge) if f.type in ("str", "Market", "Useful")]
)
def test_charges_that_differ_in_any_field_are_two(field: str) -> None:
    other = {"market": "spot", "useful": "wasted"}.get(field, "other")
    assert charge().key != dataclasses.replace(charge(), **{field: other}).key


@pytest.mark.slow
def test_two_writers_at_once_add_each_charge_once(url: str) -> None:
    charges = [charge(15 * n) for n in range(40)]
    added: list[bool] = []
    errors: list[BaseException] = []
    ready = threading.Barrier(4)

    def write() -> None:
        try:
            ready.wait()  # they open a ledger that is not there yet in the same moment
            with Ledger.open(url) as ledger:
                added.extend(ledger.add(one) for one in charges)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert sum(added) == 40
    with Ledger.open(url) as ledger:
        assert ledger.charges() == tuple(charges)


@pytest.mark.slow
def test_writers_of_the_same_charges_in_other_orders_do_not_wait_for_each_other(url: str) -> None:
    """PostgreSQL ends one of two that hold what the other one wants."""
    charges = [charge(n) for n in range(1, 1500)]
    added: list[int] = []
    ready = threading.Barrier(2)

    def write(batch: list[Charge]) -> None:
        with Ledger.open(url) as ledger:
            ready.wait()
            added.append(ledger.add_all(batch))

    with Ledger.open(url) as ledger:
        ledger.add(charge())  # their group is there: it is not what they wait for
    writers = [threading.Thread(target=write, args=(b,)) for b in (charges, charges[::-1])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(added) == [0, len(charges)]


WRITER = """
import json, sys
from tests.costs.charges import charge
from turbo_vaed.costs import Ledger
url, first = sys.argv[1], int(sys.argv[2])
added = 0
sys.stdin.readline()
with Ledger.open(url) as ledger:
    for start in range(first, first + 60, 4):
        batch = [charge(15 * n, stage=f"s{n % 5}") for n in range(start, start + 4)]
        added += ledger.add_all(batch)
        added += ledger.add(batch[0])
print(json.dumps(added))
"""


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing_and_double_nothing(url: str) -> None:
    """Three, whose charges overlap, open a ledger that is not there yet in the same moment."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 20, 40)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    added = [json.loads(child.communicate()[0]) for child in children]
    expected = tuple(charge(15 * n, stage=f"s{n % 5}") for n in range(100))
    with Ledger.open(url) as ledger:
        assert ledger.charges() == expected
        assert ledger.total() == total_usd(c.amount_usd for c in expected)
    assert sum(added) == 100


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM charges",
        "UPDATE charges SET run = 'x'",
        "UPDATE charges SET amount_low = 0",
        "DELETE FROM charge_groups",
        "UPDATE charge_groups SET run = 'x'",
    ],
)
def test_rows_cannot_be_changed(url: str, statement: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(charge())
        with pytest.raises(DBAPIError, match="append only"):
            rows_of(ledger, statement)
        assert ledger.charges() == (charge(),)
        assert [group.run for group in ledger.grouped()] == ["demo-1"]


def test_a_row_cannot_be_replaced(url: str) -> None:
    """SQLite's INSERT OR REPLACE removes the old row without firing a trigger."""
    verb = "INSERT OR REPLACE" if url.startswith("sqlite") else "INSERT"
    names = ", ".join(column.name for column in CHARGES.columns)
    changed = names.replace("customer", "'other'")
    with Ledger.open(url) as ledger:
        ledger.add(charge())
        with contextlib.suppress(IntegrityError):  # PostgreSQL's answer
            rows_of(ledger, f"{verb} INTO charges ({names}) SELECT {changed} FROM charges")
        assert ledger.charges() == (charge(),)


def test_a_table_cannot_be_emptied_on_postgresql(postgres: Postgres) -> None:
    with Ledger.open(postgres.new_database()) as ledger:
        ledger.add(charge())
        with pytest.raises(DBAPIError, match="append only"):
            rows_of(ledger, "TRUNCATE charges, charge_groups")
        assert ledger.charges() == (charge(),)


def test_totals_keep_runs_and_customers_apart(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add_all(
            [charge(), charge(run="demo-2"), charge(run="acme-1", customer="acme", useful="wasted")]
        )
        each = charge().amount_usd
        assert ledger.total(run="demo-1") == each
        assert ledger.total(customer="demo") == 2 * each
        assert ledger.total(run="demo-1", customer="acme") == 0
        assert ledger.total() == 3 * each
        assert [c.run for c in ledger.charges(customer="acme")] == ["acme-1"]


def test_charges_come_in_the_order_in_which_they_began_and_ended(url: str) -> None:
    long = dataclasses.replace(charge(15), ended_at=charge(60).ended_at)
    ours = [charge(0), charge(15), long, charge(30, resource="a"), charge(30, resource="b")]
    with Ledger.open(url) as ledger:
        ledger.add_all(ours[::-1])
        found = ledger.charges()
    assert found[:3] == tuple(ours[:3])
    assert [c.key for c in found[3:]] == sorted(c.key for c in ours[3:]), "whoever asks, the same"


def test_a_stage_costs_what_its_own_run_paid(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add_all([charge(), charge(run="demo-2", stage="export")])
        assert list(ledger.by_stage("demo-2")) == ["export"]


def test_by_stage_is_in_the_order_of_the_run(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add_all(
            [
                charge(30, stage="clip"),
                charge(0, stage="validate"),
                charge(45, stage="clip", useful="wasted"),
                charge(60, stage="export", unit="GB", quantity=Decimal(2)),
            ]
        )
        stages = ledger.by_stage("demo-1")
    assert list(stages) == ["validate", "clip", "export"]
    assert stages["clip"].usd == 2 * charge().amount_usd
    assert stages["clip"].wasted_usd == charge().amount_usd
    assert stages["clip"].node_seconds == 30
    assert stages["export"].node_seconds == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price_source": "x" * 401}, "price_source 'x+' … has 401 characters; at most 400"),
        ({"run": "a\0b"}, "no NUL"),
    ],
)
def test_values_that_a_ledger_cannot_store_are_refused_by_sqlite_and_postgresql(
    url: str, changes: dict[str, Any], message: str
) -> None:
    with Ledger.open(url) as ledger:
        with pytest.raises(UserError, match=message):
            ledger.add_all([charge(), charge(**changes)])
        assert ledger.charges() == ()
        assert ledger.add_all([]) == 0
        assert ledger.add(charge(price_source="é" * 400))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "run is ''"),
        ({"market": "free"}, "allowed: spot, on-demand, local"),
        ({"useful": "maybe"}, "allowed: useful, wasted"),
        ({"amount_usd": 0.0003}, "never a float"),
        ({"amount_usd": Decimal("NaN")}, "finite Decimal"),
        ({"amount_usd": Decimal("0.01")}, "is not 15 node-second"),
        ({"quantity": Decimal("1e-19"), "amount_usd": Decimal(0)}, "18 decimals"),
        ({"started_at": datetime(2026, 11, 22)}, "no time zone"),
        ({"ended_at": START - timedelta(seconds=1)}, "before it starts"),
    ],
)
def test_an_impossible_charge_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        charge(**changes)
