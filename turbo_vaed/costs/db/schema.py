"""The ledger's tables as queries see them. Migrations make and change them, not this module.

Money stays exact: NUMERIC where the database is exact, text on SQLite, whose NUMERIC is a float.
Beside it stand integers that any database sums to the last digit: value x 1e18 is
high x 2**64 + low, both signed and of 64 bits (`halves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator, TypeEngine

from turbo_vaed.costs.money import PRICE_QUANTUM, from_units, plain, to_units

DECIMALS = -PRICE_QUANTUM.adjusted()
DIGITS = 38
"""NUMERIC(DIGITS, DECIMALS) is how numbers are kept."""


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
        if value is None or dialect.name == "sqlite":
            return None if value is None else Decimal(value)
        return Decimal(plain(value))  # without the zeros that fill it up to its 18 decimals


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
CHARGE_GROUPS = sa.Table(
    "charge_groups",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("customer", sa.String(200), nullable=False, index=True),
    sa.Column("run", sa.String(200), nullable=False, index=True),
    sa.Column("stage", sa.String(200), nullable=False),
    sa.Column("resource", sa.String(200), nullable=False),
    sa.Column("market", sa.String(16), nullable=False),
    sa.Column("unit", sa.String(40), nullable=False),
    sa.Column("useful", sa.String(8), nullable=False),
    sa.Column("price_source", sa.String(400), nullable=False),
)
"""Each combination of names that charges have, once."""

GROUP_NAMES = tuple(c.name for c in CHARGE_GROUPS.c if c.name not in ("id", "key"))

CHARGES = sa.Table(
    "charges",
    METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(200), nullable=False),
    sa.Column("customer", sa.String(200), nullable=False),
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
    sa.Column("group_id", sa.ForeignKey(CHARGE_GROUPS.c.id), nullable=False),
    sa.Column("quantity_high", sa.BigInteger, nullable=False),
    sa.Column("quantity_low", sa.BigInteger, nullable=False),
    sa.Column("amount_high", sa.BigInteger, nullable=False),
    sa.Column("amount_low", sa.BigInteger, nullable=False),
    # Holds all that sums need, in the order of the groups: neither sorted nor looked up.
    sa.Index(
        "ix_charges_sums",
        "group_id",
        "started_at",
        "ended_at",
        "quantity_high",
        "quantity_low",
        "amount_high",
        "amount_low",
    ),
)

RESERVATIONS = sa.Table(
    "holds",
    METADATA,
    sa.Column("run", sa.String(200), primary_key=True),
    sa.Column("customer", sa.String(200), nullable=False),
    sa.Column("upto_usd", _ExactDecimal, nullable=False),
    sa.Column("told_at", _Utc, nullable=False),
)
"""Reservations of runs that are not over; they change as runs go on."""

OPEN_RUNS = sa.Table(
    "open_runs",
    METADATA,
    sa.Column("customer", sa.String(200), primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("run", sa.String(200), nullable=False),
    sa.Column("step", sa.String(200), nullable=False),
    sa.Column("flow_run", sa.String(36), nullable=False),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("machine", sa.String(200), nullable=False),
    sa.Column("process", sa.BigInteger, nullable=False),
    sa.Column("process_began", sa.Float, nullable=False),
    sa.Column("began_at", _Utc, nullable=False),
    sa.Column("seen_at", _Utc, nullable=False),
    sa.Column("abort_by", sa.String(200), nullable=False),
    sa.Column("ended_at", _Utc, nullable=True),
)
"""The last run of each customer; changes as it goes on."""

CUSTOMER_STATES = sa.Table(
    "customer_states",
    METADATA,
    sa.Column("customer", sa.String(200), primary_key=True),
    sa.Column("revision", sa.String(32), nullable=False),
    sa.Column("files", sa.Text, nullable=False),
    sa.Column("saved_at", _Utc, nullable=False),
)
"""The records of each customer's last run, by file name; replaced as it goes on."""

NOW: sa.ColumnElement[datetime] = sa.func.now(type_=_Utc())
"""The database's own time."""

NAME_LENGTHS = {
    name: CHARGE_GROUPS.c[name].type.length  # type: ignore[attr-defined]
    for name in GROUP_NAMES
}
"""Characters that a name may have."""


def halves(value: Decimal) -> tuple[int, int]:
    """(high, low) of a number of at most 38 digits, 18 of them decimals."""
    units = to_units(value)
    low = (units + 2**63) % 2**64 - 2**63
    return (units - low) >> 64, low


def sums_of(name: str) -> list[sa.ColumnElement[int]]:
    """The sums that `whole` makes one of, for `quantity` or `amount`.

    Each half is summed in two parts of 32 bits: 2**31 rows before a sum of 64 bits overflows.
    """
    shift = sa.literal_column("32", sa.Integer)  # PostgreSQL shifts by no other type
    return [
        sa.func.sum(part)
        for half in (CHARGES.c[f"{name}_high"], CHARGES.c[f"{name}_low"])
        for part in (half.bitwise_rshift(shift), half.bitwise_and(2**32 - 1))
    ]


def whole(sums: Sequence[Any]) -> Decimal:
    """The exact sum from what a database answered to `sums_of`."""
    high_over, high_under, low_over, low_under = (int(found) for found in sums)
    high, low = (high_over << 32) + high_under, (low_over << 32) + low_under
    return from_units((high << 64) + low)
