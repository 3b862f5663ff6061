"""`turbo-vaed ledger`: the tables of what runs cost, and who may do what with them."""

from __future__ import annotations

from typing import Annotated

import typer

from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The ledger's tables, and who may use them.")


@app.command("migrate")
def migrate(
    role: Annotated[
        str | None,
        typer.Option(help="an existing role of PostgreSQL that runs use: it gets what they need"),
    ] = None,
) -> None:
    """Make or update the ledger's tables, as the owner that TURBO_VAED_LEDGER_URL names.

    Whoever opens a ledger does that, too, if it may; a role that may not waits for this command.
    """
    from turbo_vaed.costs.db.engine import translated_errors
    from turbo_vaed.costs.db.migrate import REVISION, open_database
    from turbo_vaed.costs.db.roles import grant

    engine = open_database(Settings.from_environment().ledger_url)
    try:
        with translated_errors(engine.url):
            if role is not None:
                grant(engine, role)
    finally:
        engine.dispose()
    print(f"the ledger is at revision {REVISION}" + (f"; {role} may run" if role else ""))
