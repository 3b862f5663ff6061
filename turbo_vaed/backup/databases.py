"""Dumps of the databases: SQLite by its online backup, PostgreSQL by pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from turbo_vaed.errors import CorruptFile, Fault, Unreachable, UserError
from turbo_vaed.runtime.files import atomic_file


def kind_of(url: str) -> str:
    """`sqlite` or `postgresql`.

    Raises:
        UserError: of another kind, or no URL.
    """
    try:
        kind = sa.make_url(url).get_backend_name()
    except sa.exc.ArgumentError:
        kind = "none"
    if kind in ("postgres", "postgresql"):
        return "postgresql"
    if kind != "sqlite":
        raise UserError(f"a database of kind {kind}: expected sqlite:///… or postgresql://…")
    return kind


def shown(url: str) -> str:
    """A URL without its password."""
    return sa.make_url(url).render_as_string(hide_password=True)


def dump(url: str, path: Path) -> bool:
    """Write a dump, of one moment, while others read and write; False where there is no database
    yet.

    Raises:
        Unreachable: the database does not answer.
        UserError: pg_dump is not installed.
    """
    if kind_of(url) == "postgresql":
        _postgres("pg_dump", url, "--format=custom", "--no-owner", "--no-acl", f"--file={path}")
        return True
    source = Path(sa.make_url(url).database or "")
    if not source.is_file():
        return False
    with closing(sqlite3.connect(source, timeout=60)) as live, closing(sqlite3.connect(path)) as to:
        live.backup(to)
    return True


def check(kind: str, path: Path) -> str:
    """What is wrong with a dump; empty where it can be restored."""
    if kind == "sqlite":
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as dumped:
                (found,) = dumped.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        return "" if found == "ok" else str(found)
    program = _program("pg_restore")
    command = [program, "--file", os.devnull, str(path)]  # reads all of it
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


def require_kind(kind: str, url: str) -> None:
    """Check that a dump of this kind can be restored into a database.

    Raises:
        UserError: it is of another kind.
    """
    if kind != kind_of(url):
        raise UserError(
            f"the dump is of {kind}, and {shown(url)} is not: set TURBO_VAED_LEDGER_URL and "
            "MLFLOW_TRACKING_URI (or --mlflow-database) as they were when it was made"
        )


def is_empty(url: str) -> bool:
    """Whether there is nothing that a restore would replace.

    Raises:
        Unreachable: the database does not answer.
    """
    if kind_of(url) == "sqlite":
        return not Path(sa.make_url(url).database or "").is_file()
    engine = sa.create_engine(_with_driver(url))
    try:
        return not sa.inspect(engine).get_table_names()
    except sa.exc.OperationalError as error:
        line = str(error.orig).strip().splitlines()[0]
        raise Unreachable(
            f"{shown(url)} cannot be restored into ({line}): make the database first, empty, "
            "with createdb"
        ) from None
    finally:
        engine.dispose()


def restore(kind: str, path: Path, url: str) -> None:
    """Put a dump in place of what is there, all of it or nothing.

    Raises:
        UserError: the dump is of another kind of database.
        Unreachable: the database does not answer. Fault: it refuses the dump.
    """
    require_kind(kind, url)
    if kind == "postgresql":
        options = ("--clean", "--if-exists", "--no-owner", "--single-transaction")
        _postgres("pg_restore", url, *options, str(path))
        return
    target = Path(sa.make_url(url).database or "")
    with atomic_file(target) as temporary:
        shutil.copyfile(path, temporary)
        for left in ("-wal", "-shm"):  # of the database that was there
            target.with_name(target.name + left).unlink(missing_ok=True)


def _postgres(program: str, url: str, *arguments: str) -> None:
    """Run one of PostgreSQL's own programs; the password is not on its command line."""
    parsed = sa.make_url(url)
    password = {"PGPASSWORD": str(parsed.password)} if parsed.password is not None else {}
    name = parsed.set(drivername="postgresql")._replace(password=None).render_as_string()
    command = [_program(program), *arguments[:-1], f"--dbname={name}", arguments[-1]]
    done = subprocess.run(
        command, env={**os.environ, **password}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        message = done.stderr.strip()
        raised = Unreachable if "connection to server" in message else Fault
        raise raised(f"{program} of {shown(url)} failed: {message}")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UserError(
            f"{name} is not on PATH: install PostgreSQL's client programs, not older than the "
            "server (postgresql-client)"
        )
    return found


def _with_driver(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


def require_intact(kind: str, path: Path, name: str) -> None:
    """Raise CorruptFile where a dump cannot be restored."""
    if wrong := check(kind, path):
        raise CorruptFile(f"the dump of {name} cannot be restored: {wrong}")
