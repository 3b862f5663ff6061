from __future__ import annotations

import dataclasses
import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.costs.database import talking
from turbo_vaed.errors import CorruptFile, Unreachable, UserError

START = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)


def charge(second: int = 0, **changes: Any) -> Charge:
    quantity = changes.pop("quantity", Decimal("15"))
    price = changes.pop("unit_price_usd", Decimal("0.000022222222222222"))
    values: dict[str, Any] = {
        "run": "demo-1",
        "customer": "demo",
        "stage": "clip",
        "resource": "host",
        "market": "local",
        "quantity": quantity,
        "unit": "node-second",
        "unit_price_usd": price,
        "amount_usd": (quantity * price).quantize(Decimal("1e-12")),
        "started_at": START + timedelta(seconds=second),
        "ended_at": START + timedelta(seconds=second + 15),
        "useful": "useful",
        "price_source": "a test",
    }
    return Charge(**{**values, **changes})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/deeper/ledger.db"


def test_a_charge_comes_back_as_it_went_in(url: str) -> None:
    first, second = charge(0), charge(15, stage="encode", useful="wasted")
    with Ledger.open(url) as ledger:
        assert ledger.add(second)
        assert ledger.add(first)
    with Ledger.open(url) as again:
        assert again.charges() == (first, second)
        assert again.total() == first.amount_usd + second.amount_usd


@settings(deadline=None, max_examples=30)
@given(st.decimals(min_value=0, max_value=10**9, places=12), st.integers(1, 10**6))
def test_no_digit_is_lost(tmp_path_factory: pytest.TempPathFactory, usd: Decimal, n: int) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path_factory.getbasetemp()}/digits.db")
    one = charge(run=f"{usd}-{n}", quantity=Decimal(1), unit_price_usd=usd, amount_usd=usd)
    ledger.add(one)
    assert ledger.charges(run=one.run) == (one,)
    assert ledger.total(run=one.run) == usd
    ledger.close()


def test_money_is_kept_as_text_on_sqlite(url: str, tmp_path: Path) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(charge())
    rows = sqlite3.connect(tmp_path / "state/deeper/ledger.db").execute(
        "SELECT typeof(amount_usd), typeof(quantity), typeof(unit_price_usd) FROM charges"
    )
    assert rows.fetchall() == [("text", "text", "text")]


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
def test_charges_that_differ_anywhere_are_two(field: str) -> None:
    other = {"market": "spot", "useful": "wasted"}.get(field, "other")
    assert charge().key != dataclasses.replace(charge(), **{field: other}).key


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


def test_a_batch_is_all_or_none(url: str) -> None:
    with Ledger.open(url) as ledger:
        ledger._engine.dispose()
        connection = sqlite3.connect(ledger._engine.url.database or "")
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON charges WHEN NEW.stage = 'last' "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        connection.commit()
        with pytest.raises(Unreachable, match="disk is full"):
            ledger.add_all([charge(), charge(15, stage="last")])
        assert ledger.charges() == ()


@pytest.mark.parametrize("statement", ["DELETE FROM charges", "UPDATE charges SET run = 'x'"])
def test_rows_cannot_be_changed(url: str, tmp_path: Path, statement: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.add(charge())
        connection = sqlite3.connect(tmp_path / "state/deeper/ledger.db")
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            connection.execute(statement)
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
    ("changes", "said"),
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
def test_an_impossible_charge_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        charge(**changes)


def test_an_unreachable_server_names_the_url_without_its_password() -> None:
    url = make_url("postgresql+psycopg://ann:secret@db.example/costs")
    broken = OperationalError("SELECT 1", {}, Exception("connection refused\nmore"))
    with pytest.raises(Unreachable) as caught, talking(url):
        raise broken
    said = str(caught.value)
    assert "postgresql+psycopg://ann:***@db.example/costs" in said
    assert "connection refused;" in said and "secret" not in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("not a url", "not a SQLAlchemy URL"),
        ("nosuchdb://ann:secret@host/x", "nosuchdb"),
        ("oracle+oracledb://ann:secret@host/x", "driver oracledb is not installed"),
        ("postgresql+asyncpg://ann:secret@host/x", "asynchronous driver"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:///:memory:", "keeps nothing"),
    ],
)
def test_a_bad_url_is_the_users_mistake(url: str, said: str) -> None:
    with pytest.raises(UserError, match="TURBO_VAED_LEDGER_URL") as caught:
        Ledger.open(url)
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("lecture notes " * 100)
    with pytest.raises(CorruptFile, match="is not a database"):
        Ledger.open(f"sqlite:///{tmp_path}/ledger.db")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="cannot be made"):
        Ledger.open(f"sqlite:///{tmp_path}/file/ledger.db")


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="unable to open database file"):
        Ledger.open(f"sqlite:///{tmp_path}")
