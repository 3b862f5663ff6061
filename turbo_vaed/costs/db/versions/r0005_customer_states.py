"""What a customer's runs leave to the next one, on whatever machine: one row per customer, replaced
by each run that holds the customer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "customer_states",
        sa.Column("customer", sa.String(200), primary_key=True),
        sa.Column("revision", sa.String(32), nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("saved_at", sa.DateTime(timezone=True), nullable=False),
    )
