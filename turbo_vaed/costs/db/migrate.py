"""Bringing the ledger's tables to the newest revision, by Alembic, when a ledger is opened.

To change the tables, write a new revision; a released one is never edited:

1. Copy the newest file of `versions/` to `r0006_what_changes.py`; set `revision = "0006"` and
   `down_revision = "0005"`. There is no way back, so a revision has no `downgrade`.
2. Write `upgrade()` with `alembic.op`, for SQLite and PostgreSQL. It carries over every existing
   row. It runs in one transaction with all other pending revisions, so it is done as a whole or
   not at all; it opens and commits nothing itself. It imports nothing that may change, such as
   `schema.py`: it copies what it needs of it.
3. Tables of charges are append only: `append_only.py` makes a new one so. On SQLite, changing a
   column means a new table, its rows, and the old one's name (`r0002_groups.py`); a dropped table
   takes its indexes and triggers with it.
4. Change `schema.py` to match, and `REVISION` here.
5. `tests/costs/test_migrations.py` compares tables with revisions and opens ledgers of every
   earlier one, made from `tests/data/ledger-0001.*.sql`, which have rows of every kind.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from turbo_vaed.costs.db.engine import (
    UPGRADE_SECONDS,
    VERSION_TABLE,
    connect,
    current_revision,
    translated_errors,
    writing,
)
from turbo_vaed.errors import UserError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

REVISION = "0005"
"""The newest revision in `versions/`: what `schema.py` describes."""
_FIRST = "0001"
_FIRST_COLUMNS = frozenset(
    (
        *("key", "run", "customer", "stage", "resource", "market", "quantity", "unit"),
        *("unit_price_usd", "amount_usd", "started_at", "ended_at", "useful", "price_source"),
    )
)
"""Of `charges`, as ledgers had them before there were migrations."""
_LOCK = 7_260_495_122_026
"""PostgreSQL's advisory lock for upgrades of a ledger: any number that nobody else takes."""
_one_at_a_time = threading.Lock()  # Alembic's `op` is one per process


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Which revision a ledger's tables are at."""

    found: str | None
    """None: there are no tables yet."""
    pending: tuple[str, ...] = ()
    """What opening it with this version will do, in order: `0004: …`."""

    def __str__(self) -> str:
        if self.found is None:
            return f"the ledger has no tables yet; opening it makes those of revision {REVISION}"
        if not self.pending:
            return f"the ledger is at revision {self.found}, the newest that this version knows"
        steps = "".join(f"\n  {step}" for step in self.pending)
        return (
            f"the ledger is at revision {self.found}; the next command that opens it brings it to "
            f"{REVISION}, in one transaction and with no way back, so make a backup first:{steps}"
        )


def schema_of(url: str) -> Schema:
    """The revision of the ledger at a URL; nothing is made or changed.

    Raises: as `open_database`.
    """
    prefix, _, file = url.partition(":///")
    if prefix.startswith("sqlite") and not Path(file).is_file():
        return Schema(found=None)
    engine = connect(url)
    shown = engine.url.render_as_string(hide_password=True)
    try:
        with translated_errors(engine.url), engine.connect() as connection:
            found = current_revision(connection)
            if found is None and sa.inspect(connection).has_table("charges"):
                _check_first(connection, shown)
                found = _FIRST
    finally:
        engine.dispose()
    if found in (None, REVISION):
        return Schema(found=found)
    scripts = _scripts()
    _check_known(str(found), scripts, shown)
    later = (one for one in scripts.walk_revisions() if one.revision > str(found))
    return Schema(
        found=found,
        pending=tuple(
            f"{one.revision}: {' '.join(one.doc.split())}"
            for one in sorted(later, key=lambda one: one.revision)
        ),
    )


def open_database(url: str) -> sa.Engine:
    """An engine for the ledger at a SQLAlchemy URL; its folder and its tables are made if they are
    missing, and tables of an earlier version are brought up to date.

    Raises:
        UserError: the URL cannot be read, its driver is not installed, it is in memory, or the
            database is newer than this code or somebody else's.
        CorruptFile: the file is not a database.
        Unreachable: the database does not answer; the password is not shown.
    """
    engine = connect(url)
    try:
        with translated_errors(engine.url):
            make_ready(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def make_ready(engine: sa.Engine) -> None:
    """Bring an empty or older database to the newest revision; cheap where there is nothing to do.

    Raises:
        UserError: the database is newer than this code, or its tables are somebody else's.
    """
    with engine.connect() as connection:
        if current_revision(connection) == REVISION:
            return
    patient = connect(engine.url, UPGRADE_SECONDS)
    try:
        upgrade(patient)
    finally:
        patient.dispose()


def upgrade(engine: sa.Engine) -> None:
    """Bring a database to the newest revision, in one transaction and one process at a time.

    A ledger of before there were migrations is taken as the first revision.

    Raises:
        UserError: its revision is not one of ours, or a table `charges` is somebody else's.
    """
    from alembic import command  # takes a second to import

    config = _config()
    with _one_at_a_time, writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{UPGRADE_SECONDS:.0f}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        config.attributes["connection"] = connection
        found = current_revision(connection)
        shown = engine.url.render_as_string(hide_password=True)
        if found is None and sa.inspect(connection).has_table("charges"):
            _check_first(connection, shown)
            command.stamp(config, _FIRST)
        elif found is not None:
            _check_known(found, _scripts(), shown)
        command.upgrade(config, "head")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _check_first(connection: sa.Connection, shown: str) -> None:
    found = {column["name"] for column in sa.inspect(connection).get_columns("charges")}
    if found != _FIRST_COLUMNS:
        missing = ", ".join(sorted(_FIRST_COLUMNS - found)) or "none"
        unknown = ", ".join(sorted(found - _FIRST_COLUMNS)) or "none"
        raise UserError(
            f"{shown} holds a table `charges` that is no ledger's (columns missing: {missing}; "
            f"unknown: {unknown}) and no table {VERSION_TABLE}; set TURBO_VAED_LEDGER_URL to a "
            "database of its own"
        )


def _check_known(found: str, scripts: ScriptDirectory, shown: str) -> None:
    known = [script.revision for script in scripts.walk_revisions()]
    if found not in known:
        raise UserError(
            f"the ledger {shown} is at revision {found}, which this version of turbo-vaed does not "
            f"know (it knows up to {known[0]}): a newer one made it; install that, or set "
            "TURBO_VAED_LEDGER_URL to another ledger"
        )
