"""Opening the ledger's database, SQLite or PostgreSQL, and translating its errors into ours."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from turbo_vaed.errors import CorruptFile, Unreachable, UserError

BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""
UPGRADE_SECONDS = 900.0
"""How long a process waits for another one that is changing the tables."""
CONNECT_SECONDS = 10
LOST_SECONDS = 60
"""After which a connection that nothing comes through is given up."""
"""How long a PostgreSQL server may take to answer."""
VERSION_TABLE = "ledger_version"
"""Not Alembic's own name: MLflow or Prefect may live in the same database."""
_SETTING = "TURBO_VAED_LEDGER_URL"
_MIGRATE = "the owner of its tables runs: turbo-vaed ledger migrate --role ROLE"
_ADVICE = {
    "not a database": f"move the file away or set {_SETTING}",
    "malformed": f"put a copy of it in its place, or move it away, or set {_SETTING}",
    "is full": "make room on its disk: nothing of this was written, nothing written is lost",
    "No space left": "make room on its disk: nothing of this was written, nothing written is lost",
    "is locked": "another process has been writing for longer than we wait: end it, or try again",
    "readonly": f"let this user write the file and its folder, or set {_SETTING}",
    "authentication failed": f"correct the user or the password in {_SETTING}",
    "permission denied": _MIGRATE,
    "must be owner": _MIGRATE,
    'FATAL:  database "': f"correct the name in {_SETTING}, or create it on the server",
}
"""What to do, by a part of the database's message."""


def connect(url: str | URL, busy_seconds: float | None = None) -> sa.Engine:
    """An engine for the URL; SQLite gets its folder, a write-ahead log and a busy timeout.

    Raises:
        UserError: the URL cannot be read, it is of a database that we have no migrations for, its
            driver is not installed, or it is in memory.
        Unreachable: the folder cannot be made.
    """
    busy_seconds = BUSY_SECONDS if busy_seconds is None else busy_seconds
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        given = _arguments(parsed, busy_seconds)
        engine = sa.create_engine(parsed, **given)
        if engine.dialect.is_async:
            raise ArgumentError(f"{parsed.drivername} is an asynchronous driver")
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"{_SETTING}: not a SQLAlchemy URL that can be used ({error}); expected for instance "
            "sqlite:////path/ledger.db or postgresql+psycopg://user:password@host/database"
        ) from None
    except ModuleNotFoundError as error:
        hint = ": pip install 'turbo-vaed[postgres]'" if error.name == "psycopg" else ""
        raise UserError(f"{_SETTING}: the driver {error.name} is not installed{hint}") from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", lambda c, _: _prepare_sqlite(c, busy_seconds))
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _arguments(url: URL, busy_seconds: float) -> dict[str, Any]:
    backend = url.get_backend_name()
    if backend == "sqlite":
        _make_folder(url)
        return {"connect_args": {"timeout": busy_seconds}}
    if backend != "postgresql":
        raise ArgumentError(f"{backend} is neither sqlite nor postgresql")
    known = url.get_driver_name().startswith("psycopg")
    return {
        "connect_args": {
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": LOST_SECONDS * 1000,  # a network that went away, not the server
        }
        if known
        else {},
        "isolation_level": "READ COMMITTED",  # an insert waits for the same one and finds its row
        "pool_pre_ping": True,  # a server that was restarted is no error
    }


def _make_folder(url: URL) -> None:
    name = url.database or ":memory:"
    if ":memory:" in name or url.query.get("mode") == "memory":
        raise UserError(f"{_SETTING}: {url} keeps nothing; expected sqlite:////path/ledger.db")
    if name.startswith("file:"):  # SQLite's own URI: the file is there, for instance to be read
        return
    folder = Path(name).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unreachable(f"the ledger's folder {folder} cannot be made: {error}") from None


def _prepare_sqlite(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Write-ahead log, so that readers never wait; transactions begin where we say so."""
    connection.isolation_level = None
    deadline = time.monotonic() + busy_seconds
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:  # SQLite itself does not wait here
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer is one from the start: a reader that becomes one would not wait for others."""
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes: all of it or nothing."""
    with engine.execution_options(ledger_writes=True).begin() as connection:
        yield connection


def current_revision(connection: sa.Connection) -> str | None:
    """The revision that a database is at; None where no migration has touched it."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(
        sa.text(f"SELECT version_num FROM {VERSION_TABLE}")
    ).scalar()
    return found


@contextmanager
def translated_errors(url: URL) -> Iterator[None]:
    """Raise the database's own errors as `CorruptFile` or `Unreachable`, with advice."""
    try:
        yield
    except DBAPIError as error:
        shown = url.render_as_string(hide_password=True)
        message = (
            str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no answer"
        )
        advice = next((todo for part, todo in _ADVICE.items() if part in message), None)
        if "not a database" in message or "malformed" in message:
            raise CorruptFile(
                f"the ledger {shown} is not an intact database: {message}; {advice}"
            ) from error
        advice = advice or f"check that it is reachable and writable, or set {_SETTING}"
        raise Unreachable(f"the ledger {shown} cannot be used: {message}; {advice}") from error
