"""The ledger's table, and how a database is opened, whichever it is.

Money stays exact: NUMERIC where the database is exact, text on SQLite, whose NUMERIC is a float.
Rows cannot be changed or removed: triggers see to it on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.types import TypeDecorator, TypeEngine

from turbo_vaed.costs.money import PRICE_QUANTUM, plain
from turbo_vaed.errors import CorruptFile, Unreachable, UserError

BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""
CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer."""
DECIMALS = -PRICE_QUANTUM.adjusted()
DIGITS = 38
"""NUMERIC(DIGITS, DECIMALS) is how numbers are kept."""
_SETTING = "TURBO_VAED_LEDGER_URL"


class _ExactDecimal(TypeDecorator[Decimal]):
    """A Decimal that comes back as it went in: NUMERIC(38, 18), or text on SQLite."""

    impl = sa.Numeric(DIGITS, DECIMALS)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(
            sa.Text() if dialect.name == "sqlite" else self.impl_instance
        )

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:
        return plain(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class _Utc(TypeDecorator[datetime]):
    """An aware time, kept in UTC; SQLite has no time zones and gets it back here."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        aware: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC)


METADATA = sa.MetaData()
CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(200), nullable=False, index=True),
    sa.Column("customer", sa.String(200), nullable=False, index=True),
    sa.Column("stage", sa.String(200), nullable=False),
    sa.Column("resource", sa.String(200), nullable=False),
    sa.Column("market", sa.String(16), nullable=False),
    sa.Column("quantity", _ExactDecimal, nullable=False),
    sa.Column("unit", sa.String(40), nullable=False),
    sa.Column("unit_price_usd", _ExactDecimal, nullable=False),
    sa.Column("amount_usd", _ExactDecimal, nullable=False),
    sa.Column("started_at", _Utc, nullable=False),
    sa.Column("ended_at", _Utc, nullable=False),
    sa.Column("useful", sa.String(8), nullable=False),
    sa.Column("price_source", sa.String(400), nullable=False),
)

for _verb in ("UPDATE", "DELETE"):
    sa.event.listen(
        CHARGES,
        "after_create",
        sa.DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER charges_no_{_verb.lower()} BEFORE {_verb} ON charges "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END"
        ).execute_if(dialect="sqlite"),
    )
for _statement in (
    "CREATE OR REPLACE FUNCTION charges_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger is append only'; END $$",
    "CREATE TRIGGER charges_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON charges "
    "FOR EACH STATEMENT EXECUTE FUNCTION charges_append_only()",
):
    sa.event.listen(
        CHARGES,
        "after_create",
        sa.DDL(  # type: ignore[no-untyped-call]
            _statement
        ).execute_if(dialect="postgresql"),
    )


def connect(url: str) -> sa.Engine:
    """An engine for the URL; SQLite gets its folder, a write-ahead log and a busy timeout.

    Raises:
        UserError: the URL cannot be read, its driver is not installed, or it is in memory.
        Unreachable: the folder cannot be made.
    """
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            _make_folder(parsed)
            arguments: dict[str, Any] = {"timeout": BUSY_SECONDS}
        else:
            known = parsed.get_driver_name().startswith("psycopg")
            arguments = {"connect_timeout": CONNECT_SECONDS} if known else {}
        engine = sa.create_engine(parsed, connect_args=arguments)
        if engine.dialect.is_async:
            raise ArgumentError(f"{parsed.drivername} is an asynchronous driver")
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"{_SETTING}: not a SQLAlchemy URL that can be used ({error}); expected for instance "
            "sqlite:////path/ledger.db or postgresql+psycopg://user:password@host/database"
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(f"{_SETTING}: the driver {error.name} is not installed") from None
    if backend == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
    return engine


def _make_folder(url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise UserError(f"{_SETTING}: {url} keeps nothing; expected sqlite:////path/ledger.db")
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unreachable(f"the ledger's folder {folder} cannot be made: {error}") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Write-ahead log, so that readers never wait; transactions begin where we say so."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")


def answers(engine: sa.Engine) -> bool:
    """Whether the database is there at all, were it locked by somebody."""
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        return True
    except DBAPIError as error:
        return "locked" in str(error.orig)


@contextmanager
def talking(url: URL) -> Iterator[None]:
    """The database's own errors as ours."""
    try:
        yield
    except DBAPIError as error:
        shown = url.render_as_string(hide_password=True)
        said = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no answer"
        if "not a database" in said:
            raise CorruptFile(
                f"the ledger {shown} is not a database ({said}); move the file away or set "
                f"{_SETTING}"
            ) from error
        raise Unreachable(
            f"the ledger {shown} cannot be used: {said}; check that it is reachable and "
            f"writable, or set {_SETTING}"
        ) from error
