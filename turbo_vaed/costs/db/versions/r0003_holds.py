"""What runs that are not over have reserved. These are no charges: a run updates its row as it goes
and removes it at its end, so the table is not append only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    exact: sa.types.TypeEngine[Any] = sa.Text() if on_sqlite else sa.Numeric(38, 18)
    op.create_table(
        "holds",
        sa.Column("run", sa.String(200), primary_key=True),
        sa.Column("customer", sa.String(200), nullable=False),
        sa.Column("upto_usd", exact, nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
    )
