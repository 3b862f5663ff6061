"""A table of charges, append only: as ledgers were before there were migrations."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from turbo_vaed.costs.db.append_only import keep_rows

revision = "0001"
down_revision = None


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    exact: sa.types.TypeEngine[Any] = sa.Text() if on_sqlite else sa.Numeric(38, 18)
    op.create_table(
        "charges",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False, index=True),
        sa.Column("customer", sa.String(200), nullable=False, index=True),
        sa.Column("stage", sa.String(200), nullable=False),
        sa.Column("resource", sa.String(200), nullable=False),
        sa.Column("market", sa.String(16), nullable=False),
        sa.Column("quantity", exact, nullable=False),
        sa.Column("unit", sa.String(40), nullable=False),
        sa.Column("unit_price_usd", exact, nullable=False),
        sa.Column("amount_usd", exact, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("useful", sa.String(8), nullable=False),
        sa.Column("price_source", sa.String(400), nullable=False),
    )
    keep_rows("charges")
