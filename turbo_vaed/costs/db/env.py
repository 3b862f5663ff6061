"""Alembic's entry point: it runs the pending revisions in the transaction that `upgrade` began."""

from alembic import context

from turbo_vaed.costs.db.engine import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
