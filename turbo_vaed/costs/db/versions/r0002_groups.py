"""Charges know their group and hold their numbers as integers too, which add up exactly.

A number is high x 2**64 + low times 1e-18, both signed and of 64 bits.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Context, Decimal, Inexact

import sqlalchemy as sa
from alembic import op

from turbo_vaed.costs.db.append_only import keep_keys, keep_rows

revision = "0002"
down_revision = "0001"

_NAMES = ("customer", "run", "stage", "resource", "market", "unit", "useful", "price_source")
_COLUMNS = (
    "key, run, customer, stage, resource, market, quantity, unit, unit_price_usd, amount_usd, "
    "started_at, ended_at, useful, price_source"
)
_HALVES = ("quantity_high", "quantity_low", "amount_high", "amount_low")
_SAME_GROUP = " AND ".join(f"g.{name} = c.{name}" for name in _NAMES)
_RADIX = "18446744073709551616"  # 2**64
_EXACT = Context(prec=60, traps=[Inexact])


def upgrade() -> None:
    _make_groups()
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_on_sqlite()
    else:
        _extend_on_postgresql()
    op.create_index("ix_charges_sums", "charges", ["group_id", "started_at", "ended_at", *_HALVES])
    for table in ("charge_groups", "charges"):
        keep_keys(table)


def _make_groups() -> None:
    groups = op.create_table(
        "charge_groups",
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
    there = op.get_bind().execute(sa.text(f"SELECT DISTINCT {', '.join(_NAMES)} FROM charges"))
    rows = [dict(row) for row in there.mappings()]
    op.bulk_insert(groups, [{"key": _group_key(row), **row} for row in rows])
    keep_rows("charge_groups")


def _group_key(names: dict[str, str]) -> str:
    content = json.dumps([names[name] for name in _NAMES])
    return hashlib.sha256(content.encode()).hexdigest()


def _rebuild_on_sqlite() -> None:
    """A new table with the old rows: SQLite adds no column that must be filled."""
    raw = op.get_bind().connection.driver_connection
    assert raw is not None
    raw.create_function("ledger_high", 1, lambda text: _halves(text)[0], deterministic=True)
    raw.create_function("ledger_low", 1, lambda text: _halves(text)[1], deterministic=True)
    op.create_table(
        "charges_next",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False),
        sa.Column("customer", sa.String(200), nullable=False),
        sa.Column("stage", sa.String(200), nullable=False),
        sa.Column("resource", sa.String(200), nullable=False),
        sa.Column("market", sa.String(16), nullable=False),
        sa.Column("quantity", sa.Text, nullable=False),
        sa.Column("unit", sa.String(40), nullable=False),
        sa.Column("unit_price_usd", sa.Text, nullable=False),
        sa.Column("amount_usd", sa.Text, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("useful", sa.String(8), nullable=False),
        sa.Column("price_source", sa.String(400), nullable=False),
        sa.Column("group_id", sa.Integer, sa.ForeignKey("charge_groups.id"), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _HALVES),
    )
    op.execute(
        f"INSERT INTO charges_next ({_COLUMNS}, group_id, {', '.join(_HALVES)}) "
        f"SELECT {', '.join('c.' + name for name in _COLUMNS.split(', '))}, g.id, "
        "ledger_high(c.quantity), ledger_low(c.quantity), "
        "ledger_high(c.amount_usd), ledger_low(c.amount_usd) "
        f"FROM charges c LEFT JOIN charge_groups g ON {_SAME_GROUP} ORDER BY c.rowid"
    )
    op.drop_table("charges")
    op.rename_table("charges_next", "charges")
    keep_rows("charges")


def _halves(text: str) -> tuple[int, int]:
    units = int(_EXACT.quantize(_EXACT.scaleb(Decimal(text), 18), Decimal(1)))
    low = (units + 2**63) % 2**64 - 2**63
    return (units - low) >> 64, low


def _halves_in_sql(name: str) -> tuple[str, str]:
    """As `_halves`; PostgreSQL's mod has the sign of what is divided."""
    units = f"(c.{name} * 1e18)"
    low = f"(mod(mod({units} + {_RADIX} / 2, {_RADIX}) + {_RADIX}, {_RADIX}) - {_RADIX} / 2)"
    return f"div({units} - {low}, {_RADIX})", low


def _extend_on_postgresql() -> None:
    op.add_column("charges", sa.Column("group_id", sa.Integer, sa.ForeignKey("charge_groups.id")))
    for name in _HALVES:
        op.add_column("charges", sa.Column(name, sa.BigInteger))
    op.execute("ALTER TABLE charges DISABLE TRIGGER charges_append_only")
    filled = ", ".join(
        f"{half}_high = {high}, {half}_low = {low}"
        for half, name in (("quantity", "quantity"), ("amount", "amount_usd"))
        for high, low in (_halves_in_sql(name),)
    )
    op.execute(
        f"UPDATE charges AS c SET group_id = g.id, {filled} FROM charge_groups g "
        f"WHERE {_SAME_GROUP}"
    )
    op.execute("ALTER TABLE charges ENABLE TRIGGER charges_append_only")
    for name in ("group_id", *_HALVES):
        op.alter_column("charges", name, nullable=False)
    op.drop_index("ix_charges_run", "charges")
    op.drop_index("ix_charges_customer", "charges")
