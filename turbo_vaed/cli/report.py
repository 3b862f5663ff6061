"""`turbo-vaed report …`: the HTML page of a run."""

from __future__ import annotations

import sys

import typer

from turbo_vaed.cli.tables import Customer
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The HTML page of a run.")


@app.command("open")
def open_report(customer: Customer) -> None:
    """Open the report of a customer's last run in the browser, and print where it is.

    Where no run has started yet, it is the page of the one that was refused. Where a later run was
    refused, its page is named on stderr.
    """
    import webbrowser

    from turbo_vaed.workspace import Workspace

    workspace = Workspace.load(Settings.from_environment().root, customer)
    refused = workspace.not_started.is_file()
    path = workspace.report if workspace.report.is_file() or not refused else workspace.not_started
    if not path.is_file():
        raise UserError(f"no report yet for {customer}; run: turbo-vaed poc {customer}")
    if refused and path != workspace.not_started:
        print(f"a later run was not started: {workspace.not_started}", file=sys.stderr)
    print(path)
    webbrowser.open(path.as_uri())
