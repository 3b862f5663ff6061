"""What Alembic runs: the revisions that are due, in the transaction that `upgrade` began."""

from alembic import context

from turbo_vaed.costs.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
