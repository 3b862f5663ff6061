"""Who may do what with a ledger on PostgreSQL, and what `turbo-vaed doctor` says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from tests import configs
from turbo_vaed.cli import endpoints
from turbo_vaed.cli.endpoints import Warned
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.db.migrate import open_database
from turbo_vaed.costs.db.roles import grant
from turbo_vaed.errors import Unreachable, UserError
from turbo_vaed.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(configs.copy_to(tmp_path))


def as_role(url: str, name: str) -> str:
    return sa.make_url(url).set(username=name, password="x").render_as_string(hide_password=False)


def test_the_role_of_runs_may_add_to_charges_and_not_change_them(settings, postgres):
    """The owner, a role with what runs need, and one that lacks something."""
    url = postgres.new_database()
    database = sa.make_url(url).database
    name = f"run_{database}"
    owner = open_database(url)
    with owner.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    there = dataclasses.replace(settings, ledger_url=as_role(url, name))
    with pytest.raises(Unreachable, match="turbo-vaed ledger migrate --role"):
        endpoints.ledger(there)
    grant(owner, name)
    assert endpoints.ledger(there).endswith(f"as {name}")
    with Ledger.open(there.ledger_url) as ledger:
        assert ledger.charges() == ()
    run = sa.create_engine(there.ledger_url)
    with pytest.raises(ProgrammingError, match="permission denied"), run.begin() as connection:
        connection.exec_driver_sql("UPDATE charges SET amount_usd = 0")
    with owner.begin() as connection:
        connection.exec_driver_sql(f"REVOKE INSERT ON charges FROM {name}")
        connection.exec_driver_sql(f"GRANT DELETE ON charges TO {name}")
    with pytest.raises(UserError, match="lacks INSERT on charges;"):
        endpoints.ledger(there)
    with owner.begin() as connection:
        connection.exec_driver_sql(f"GRANT INSERT ON charges TO {name}")
    with pytest.raises(Warned, match="DELETE on charges,"):
        endpoints.ledger(there)
    with pytest.raises(Warned, match="ownership of charges"):
        endpoints.ledger(dataclasses.replace(settings, ledger_url=url))
    run.dispose()
    owner.dispose()
