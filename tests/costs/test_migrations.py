"""How a ledger's tables come to be: from nothing, from those of earlier code, by many at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.costs.charges import charge
from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.costs.db import engine as database
from turbo_vaed.costs.db import migrate
from turbo_vaed.costs.db.engine import VERSION_TABLE, connect
from turbo_vaed.costs.db.migrate import REVISION
from turbo_vaed.costs.db.schema import METADATA, halves
from turbo_vaed.errors import UserError

DATA = Path(__file__).parents[1] / "data"
OLD_CHARGES = 12


def run_sql(url: str, text: str) -> None:
    """Statements as they are, without SQLAlchemy."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(parsed.database or "") as connection:
            connection.executescript(text)
        connection.close()
        return
    with psycopg.connect(
        host=parsed.query["host"], user=parsed.username, password=parsed.password,
        dbname=parsed.database,
    ) as server:  # fmt: skip
        server.execute(text)  # type: ignore[call-overload]


@pytest.fixture
def old(url: str) -> str:
    """A ledger that the code before migrations made, with rows of every kind."""
    run_sql(url, (DATA / f"ledger-0001.{sa.make_url(url).get_backend_name()}.sql").read_text())
    return url


def shape(url: str) -> dict[str, Any]:
    """Everything that a database reports of its tables, triggers included."""
    engine = connect(url)
    with engine.connect() as connection:
        look = sa.inspect(connection)
        triggers = {
            "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name",
            "postgresql": "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger "
            "WHERE NOT tgisinternal ORDER BY tgname",
        }[engine.dialect.name]
        found = {
            table: {
                "columns": [{**c, "type": str(c["type"])} for c in look.get_columns(table)],
                "key": look.get_pk_constraint(table),
                "foreign": look.get_foreign_keys(table),
                "indexes": sorted(look.get_indexes(table), key=lambda i: str(i["name"])),
            }
            for table in sorted(look.get_table_names())
        }
        rows = connection.exec_driver_sql(triggers).all()
    engine.dispose()
    return {**found, "triggers": [tuple(row) for row in rows]}


def test_a_ledger_of_an_earlier_version_keeps_every_row(old: str) -> None:
    with Ledger.open(old) as ledger:
        charges = ledger.charges()
        assert len(charges) == OLD_CHARGES
        engine = ledger._engine
        with engine.connect() as connection:
            kept = connection.exec_driver_sql(
                "SELECT key, quantity_high, quantity_low, amount_high, amount_low FROM charges"
            ).all()
        assert {row[0] for row in kept} == {one.key for one in charges}
        expected = {one.key: halves(one.quantity) + halves(one.amount_usd) for one in charges}
        assert {row[0]: tuple(row[1:]) for row in kept} == expected
        assert ledger.total(run="large") == 0
        assert len({one.quantity for one in ledger.charges(run="large")}) == 2
        assert sum(group.charges for group in ledger.grouped()) == OLD_CHARGES
        assert [group.price_source for group in ledger.grouped() if group.useful == "wasted"] == [
            "params.yaml; wasted: o'clock — 100 % {x} :y"
        ]


def test_an_upgraded_ledger_does_not_take_its_charges_twice(old: str) -> None:
    with Ledger.open(old) as ledger:
        there = ledger.charges()
        groups = ledger.grouped()
        assert ledger.add_all(there) == 0
        assert ledger.grouped() == groups
        engine = ledger._engine
        with engine.connect() as connection:
            count = connection.exec_driver_sql("SELECT count(*) FROM charge_groups").scalar()
        assert count == len(groups)


def test_an_upgraded_ledger_has_the_tables_of_a_new_one(
    old: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if old.startswith("sqlite"):
        new = f"sqlite:///{tmp_path}/new.db"
    else:
        new = request.getfixturevalue("postgres").new_database()
    for url in (old, new):
        Ledger.open(url).close()
    assert shape(old) == shape(new)


def test_the_first_revision_makes_the_tables_of_ledgers_without_one(old: str) -> None:
    """What revision 0001 makes is what the code before migrations made."""
    adopted = shape(old)
    engine = connect(old)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE charges")
    with database.writing(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrate.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    made = shape(old)
    del made[VERSION_TABLE]
    assert made == adopted


@pytest.mark.parametrize("revision", [f"{n:04d}" for n in range(1, int(REVISION))])
def test_a_ledger_of_every_earlier_revision_keeps_its_rows(
    old: str, revision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine = connect(old)
    with database.writing(engine) as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrate.__file__).parent))
        config.attributes["connection"] = connection
        command.stamp(config, "0001")
        command.upgrade(config, revision)
    engine.dispose()
    test_a_ledger_of_an_earlier_version_keeps_every_row(old)
    test_an_upgraded_ledger_has_the_tables_of_a_new_one(old, tmp_path, request)


def test_rows_stay_append_only_after_an_upgrade(old: str) -> None:
    with Ledger.open(old) as ledger, ledger._engine.connect() as connection:
        for statement in ("DELETE FROM charges", "UPDATE charge_groups SET run = 'x'"):
            with pytest.raises(sa.exc.DBAPIError, match="append only"):
                connection.exec_driver_sql(statement)
            connection.rollback()


def test_an_upgrade_that_fails_changes_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shape(old)
    really = command.upgrade

    def break_off(*given: Any) -> None:
        really(*given)
        raise RuntimeError("the power went")

    monkeypatch.setattr(command, "upgrade", break_off)
    with pytest.raises(RuntimeError, match="the power went"):
        Ledger.open(old)
    assert shape(old) == before
    monkeypatch.undo()
    with Ledger.open(old) as ledger:
        assert len(ledger.charges()) == OLD_CHARGES


OPENER = """
import sys
from turbo_vaed.costs import Ledger
sys.stdin.readline()
with Ledger.open(sys.argv[1]) as ledger:
    print(len(ledger.charges()))
"""


@pytest.mark.slow
def test_processes_upgrade_a_ledger_once(old: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, old],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [child.communicate()[0] for child in children] == [f"{OLD_CHARGES}\n"] * 3
    assert [child.returncode for child in children] == [0] * 3


def test_threads_upgrade_a_ledger_once(old: str) -> None:
    ready, counted = threading.Barrier(4), []

    def look() -> None:
        ready.wait()
        with Ledger.open(old) as ledger:
            counted.append(len(ledger.charges()))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [OLD_CHARGES] * 4


def test_threads_upgrade_ledgers_of_their_own_at_once(tmp_path: Path) -> None:
    """Alembic's `op` is one per process, not per database."""
    urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(4)]
    ready, counted = threading.Barrier(4), []

    def look(url: str) -> None:
        ready.wait()
        with Ledger.open(url) as ledger:
            counted.append(len(ledger.charges()))

    for url in urls:
        run_sql(url, (DATA / "ledger-0001.sqlite.sql").read_text())
    threads = [threading.Thread(target=look, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [OLD_CHARGES] * 4


class Contended(sqlite3.Connection):
    """Another one turns the same new file to a write-ahead log: SQLite refuses without waiting."""

    refusals = 2

    def execute(self, statement: str, *given: Any) -> sqlite3.Cursor:
        if statement == "PRAGMA journal_mode=WAL" and self.refusals:
            self.refusals -= 1
            raise sqlite3.OperationalError("database is locked")
        return super().execute(statement, *given)


def test_the_write_ahead_log_of_a_new_file_is_tried_again(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.db", factory=Contended)
    database._prepare_sqlite(connection, 30)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other = sqlite3.connect(tmp_path / "other.db", factory=Contended)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        database._prepare_sqlite(other, 0)


def test_a_ledger_of_newer_code_is_refused_and_left_alone(url: str) -> None:
    Ledger.open(url).close()
    run_sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(UserError, match=f"revision 9999.*up to {REVISION}.*a newer one made it"):
        Ledger.open(url)
    run_sql(url, f"UPDATE {VERSION_TABLE} SET version_num = '{REVISION}'")
    with Ledger.open(url) as ledger:
        assert ledger.add(charge())


def test_a_table_of_another_program_is_refused_and_left_alone(url: str) -> None:
    run_sql(url, "CREATE TABLE charges (key VARCHAR(64), volts INTEGER)")
    before = shape(url)
    with pytest.raises(UserError, match=r"no ledger's .*missing: amount_usd, .*unknown: volts"):
        Ledger.open(url)
    assert shape(url) == before


def test_another_programs_alembic_in_the_same_database_is_left_alone(url: str) -> None:
    run_sql(url, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    run_sql(url, "INSERT INTO alembic_version VALUES ('mlflow')")
    with Ledger.open(url) as ledger, ledger._engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
    assert found == [("mlflow",)]


def test_the_tables_are_what_the_revisions_make(url: str) -> None:
    with Ledger.open(url) as ledger, ledger._engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, METADATA) == []


def test_the_code_requires_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent))
    assert scripts.get_heads() == [REVISION]


CHEAP = """
import sys
from turbo_vaed.costs import Ledger
Ledger.open(sys.argv[1]).close()
print("alembic" in sys.modules)
"""


@pytest.mark.slow
def test_alembic_is_imported_only_for_an_upgrade(url: str) -> None:
    def imports() -> str:
        found = subprocess.run([sys.executable, "-c", CHEAP, url], capture_output=True, text=True)
        return found.stdout

    assert imports() == "True\n"
    assert imports() == "False\n"


@pytest.fixture
def statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def see(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", see)
    yield seen
    sa.event.remove(sa.Engine, "before_cursor_execute", see)


def test_opening_an_up_to_date_ledger_only_reads_its_revision(
    url: str, statements: list[str]
) -> None:
    Ledger.open(url).close()
    statements.clear()
    Ledger.open(url).close()
    assert sum(VERSION_TABLE in statement for statement in statements) >= 1
    assert len(statements) <= 9, statements
    assert not [s for s in statements if not s.startswith(("SELECT", "select", "PRAGMA", "BEGIN"))
                and not s.startswith("show ")]  # fmt: skip


@pytest.mark.slow
def test_charges_of_the_old_code_are_the_same_charges(old: str) -> None:
    """Their keys did not change with the tables."""
    with Ledger.open(old) as ledger:
        assert all(isinstance(one, Charge) for one in ledger.charges())
        first = ledger.charges()[0]
    assert first.key == "3d0d462d53f865e451df1f8fbc6178a04509c78abf92c035ca5ccd7f17cacf25"
