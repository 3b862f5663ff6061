"""`turbo-vaed distill …`: the training of a student."""

from __future__ import annotations

import json

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The training of a student.")


@app.command("status")
def show_distillation(customer: Customer, form: Format = "table") -> None:
    """How a customer's distillation stands: one in flight, or the last."""
    import time

    from turbo_vaed.distill.progress import read_status, status_rows
    from turbo_vaed.workspace import Workspace

    workspace = Workspace.load(Settings.from_environment().root, customer)
    status = read_status(workspace.progress_file, customer=customer, now=time.time())
    if form == "json":
        print(json.dumps(status))
        return
    show(status_rows(status), form, f"distillation of {customer}")
