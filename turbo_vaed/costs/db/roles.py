"""Who may do what with a ledger on PostgreSQL: its owner changes tables, runs only add to them.

Rows of charges are kept by triggers, and whoever owns a table can drop its triggers: the role of
runs therefore owns nothing and may not change a row of a charge.
"""

from __future__ import annotations

import sqlalchemy as sa

from turbo_vaed.costs.db.engine import VERSION_TABLE, writing
from turbo_vaed.costs.db.schema import CHARGE_GROUPS, CHARGES, METADATA
from turbo_vaed.errors import UserError

_KEPT = frozenset((CHARGES.name, CHARGE_GROUPS.name))
"""Tables whose rows nobody changes; runs change and remove those of all others."""
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")


def rights() -> dict[str, tuple[str, ...]]:
    """What the role of runs needs, by table."""
    needed = {name: _ALL[:2] if name in _KEPT else _ALL for name in METADATA.tables}
    return {**needed, VERSION_TABLE: ("SELECT",)}


def grant(engine: sa.Engine, role: str) -> None:
    """Give an existing role what runs need, and take what they do not; by the tables' owner.

    Raises:
        UserError: the ledger is not on PostgreSQL, or there is no such role.
    """
    if engine.dialect.name != "postgresql":
        raise UserError(f"a ledger on {engine.dialect.name} has no roles; --role is of PostgreSQL")
    quoted = engine.dialect.identifier_preparer.quote(role)
    with writing(engine) as connection:
        known = sa.text("SELECT count(*) FROM pg_roles WHERE rolname = :role")
        if not connection.execute(known, {"role": role}).scalar():
            raise UserError(f"the server has no role {role!r}; create it: CREATE ROLE … LOGIN")
        for table, verbs in rights().items():
            connection.exec_driver_sql(f"REVOKE ALL ON {table} FROM {quoted}")
            connection.exec_driver_sql(f"GRANT {', '.join(verbs)} ON {table} TO {quoted}")
        sequences = "ALL SEQUENCES IN SCHEMA public"  # to be read by a dump
        connection.exec_driver_sql(f"GRANT USAGE, SELECT ON {sequences} TO {quoted}")


def role_faults(connection: sa.Connection) -> tuple[list[str], list[str]]:
    """What the role of a PostgreSQL connection lacks, and what it may though no run needs it."""
    missing, excess = [], []
    for table, verbs in rights().items():
        asked = sa.text("SELECT has_table_privilege(current_user, CAST(:t AS regclass), :v)")
        for verb in (*_ALL, "TRUNCATE"):
            allowed = connection.execute(asked, {"t": table, "v": verb}).scalar()
            if verb in verbs and not allowed:
                missing.append(f"{verb} on {table}")
            elif allowed and verb not in verbs and (table in _KEPT or table == VERSION_TABLE):
                excess.append(f"{verb} on {table}")
    owned = connection.execute(
        sa.text(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' "
            "AND pg_has_role(current_user, tableowner, 'USAGE') AND tablename = ANY(:tables)"
        ),
        {"tables": [*rights()]},
    ).scalars()
    excess += [f"ownership of {table}" for table in sorted(owned)]
    return missing, excess
