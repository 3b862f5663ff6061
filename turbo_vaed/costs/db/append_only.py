"""Triggers that keep rows as they are. Released revisions call this: it never changes."""

from __future__ import annotations

from alembic import op

_FUNCTION = (
    "CREATE OR REPLACE FUNCTION charges_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger is append only'; END $$"
)


def keep_rows(table: str) -> None:
    """No row of `table` can be changed or removed from now on."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append only'); END"
            )
        return
    op.execute(_FUNCTION)
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION charges_append_only()"
    )


def keep_keys(table: str) -> None:
    """SQLite's INSERT OR REPLACE removes a row without a word to triggers: what has a key that is
    there is not inserted, whatever the statement says. PostgreSQL has no such statement."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE key = NEW.key) "
            "BEGIN SELECT RAISE(IGNORE); END"
        )
