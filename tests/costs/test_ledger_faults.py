"""A ledger whose database is bad: a clear error, and no charge is lost or doubled."""

from __future__ import annotations

import signal
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.costs.charges import charge
from tests.costs.conftest import Postgres
from turbo_vaed.costs import Ledger, Meter, Rate, steady
from turbo_vaed.costs.db import engine
from turbo_vaed.errors import CorruptFile, Unreachable, UserError


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("not a url", "not a SQLAlchemy URL"),
        ("nosuchdb://ann:secret@host/x", "nosuchdb"),
        ("postgresql+pg8000://ann:secret@host/x", "driver pg8000 is not installed"),
        ("postgresql+nosuch://ann:secret@host/x", "nosuch"),
        ("postgresql+asyncpg://ann:secret@host/x", "asynchronous driver"),
        ("mysql://ann:secret@host/x", "neither sqlite nor postgresql"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:///file:x?mode=memory&uri=true", "keeps nothing"),
        ("sqlite:///:memory:", "keeps nothing"),
    ],
)
def test_a_bad_url_is_the_users_mistake(url: str, message: str) -> None:
    with pytest.raises(UserError, match="TURBO_VAED_LEDGER_URL") as caught:
        Ledger.open(url)
    assert message in str(caught.value) and "secret" not in str(caught.value)


def test_postgres_without_a_driver_named_is_psycopg(postgres: Postgres) -> None:
    with Ledger.open(postgres.new_database().replace("+psycopg", "")) as ledger:
        assert ledger.add(charge())


def test_a_missing_psycopg_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"psycopg is not installed: pip install 'turbo-vaed\[po"):
        Ledger.open("postgresql://ann@host/x")


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


def test_a_file_that_was_damaged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        ledger.add_all([charge(15 * n) for n in range(200)])
    path = tmp_path / "ledger.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    message = "database disk image is malformed"
    with pytest.raises(CorruptFile, match=message), Ledger.open(url) as ledger:
        ledger.charges()


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(charge())
        with Ledger.open(f"sqlite:///file:{tmp_path}/ledger.db?mode=ro&uri=true") as reader:
            assert reader.total() == charge().amount_usd
            with pytest.raises(Unreachable, match="readonly database; let this user write"):
                reader.add(charge(15))
        assert ledger.charges() == (charge(),)


def test_a_locked_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(charge())
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreachable, match="database is locked; another process"):
            ledger.add_all([charge(), charge(15)])
        assert ledger.charges() == (charge(),)  # reading goes on
        other.execute("COMMIT")
        assert ledger.add_all([charge(), charge(15)]) == 1


def test_a_full_disk_takes_a_batch_whole_or_not_at_all(tmp_path: Path) -> None:
    first, batch = charge(), [charge(15 * n) for n in range(1, 200)]
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add(first)
        set_pages(ledger, "(SELECT page_count + 3 FROM pragma_page_count)")
        with pytest.raises(Unreachable, match="is full; make room on its disk"):
            ledger.add_all(batch)
        assert ledger.charges() == (first,)
        assert ledger.total() == first.amount_usd
        set_pages(ledger, "1000000")
        assert ledger.add_all([first, *batch]) == len(batch)
        assert ledger.charges() == (first, *batch)


def set_pages(ledger: Ledger, expression: str) -> None:
    """How large the database may grow; its one connection keeps it."""
    with ledger._engine.connect() as connection:
        limit = connection.exec_driver_sql(f"SELECT {expression}").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")


def test_a_batch_is_all_or_none(url: str) -> None:
    full = "database or disk is full"
    fail = f"BEGIN SELECT RAISE(ABORT, '{full}'); END"
    with Ledger.open(url) as ledger:
        with ledger._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(
                    "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
                    f"$$ BEGIN RAISE disk_full USING MESSAGE = '{full}'; END $$"
                )
                fail = "EXECUTE FUNCTION fail()"
            each = "FOR EACH ROW" if connection.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(
                f"CREATE TRIGGER fails BEFORE INSERT ON charges {each} "
                f"WHEN (NEW.stage = 'last') {fail}"
            )
        with pytest.raises(Unreachable, match="disk is full"):
            ledger.add_all([charge(), charge(15, stage="last"), charge(30)])
        assert ledger.charges() == () and ledger.grouped() == ()


def test_a_wrong_password_is_refused_and_never_printed(postgres: Postgres) -> None:
    with pytest.raises(Unreachable, match=r"authentication failed.*correct the user or") as caught:
        Ledger.open(postgres.url("postgres", password="not-the-secret"))
    assert "ann:***@" in str(caught.value) and "not-the-secret" not in str(caught.value)


def test_a_database_that_is_not_on_the_server(postgres: Postgres) -> None:
    with pytest.raises(Unreachable, match='database "nowhere" does not exist; correct the name'):
        Ledger.open(postgres.url("nowhere"))


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"cannot be used: .*connection.* failed.*; check that"):
        Ledger.open(f"postgresql://ann:secret@/costs?host={tmp_path}")


def test_a_server_that_crashes_takes_every_charge_once_when_it_is_back(
    own_postgres: Postgres,
) -> None:
    server = own_postgres
    with Ledger.open(server.new_database()) as ledger:
        ledger.add(charge())
        server.stop(signal.SIGQUIT)
        with pytest.raises(Unreachable, match="cannot be used"):
            ledger.add_all([charge(), charge(15)])
        with pytest.raises(Unreachable, match="cannot be used"):
            ledger.total()
        server.start()
        assert ledger.add_all([charge(), charge(15)]) == 1
        assert ledger.charges() == (charge(), charge(15))


def test_a_connection_that_breaks_is_made_again_unnoticed(postgres: Postgres) -> None:
    with Ledger.open(postgres.new_database()) as ledger:
        ledger.add(charge())
        with postgres.connect() as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s",
                [ledger._engine.url.database],
            )
        assert ledger.add(charge(15))


def test_an_unacknowledged_commit_is_not_written_twice(url: str) -> None:
    """The database committed the charges and was lost before it answered."""
    with Ledger.open(url) as ledger:

        def hang_up(connection: sa.Connection) -> None:
            sa.event.remove(ledger._engine, "commit", hang_up)
            connection.connection.commit()
            raise sa.exc.OperationalError("COMMIT", {}, Exception("connection lost"))

        sa.event.listen(ledger._engine, "commit", hang_up)
        with pytest.raises(Unreachable, match="connection lost"):
            ledger.add_all([charge(), charge(15)])
        assert ledger.add_all([charge(), charge(15)]) == 0
        assert ledger.charges() == (charge(), charge(15))


def test_a_meter_writes_later_what_a_locked_ledger_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    clock = iter(n * 15_000_000_000 for n in range(100))
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        with Meter(
            ledger,
            run="demo-1",
            customer="demo",
            stage="clip",
            nodes=steady(
                Rate(
                    resource="host",
                    market="local",
                    usd_per_hour=charge().unit_price_usd * 3600,
                    source="a test",
                )
            ),
            interval_seconds=3600,
            clock=lambda: next(clock),
        ) as meter:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unreachable, match="locked"):
                meter.cut()
            other.execute("COMMIT")
        assert [c.quantity for c in ledger.charges()] == [15, 15]
