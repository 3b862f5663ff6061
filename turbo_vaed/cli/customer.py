"""`turbo-vaed customer …`: who has videos, and for what use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import Fault
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Customers: who has videos, and for what use.")


@app.command("add")
def add_customer(
    name: Annotated[str, typer.Argument(help="a-z, 0-9, '-' and '_'")],
    source: Annotated[Path, typer.Option(help="folder of videos")],
    use_case: Annotated[str, typer.Option(help="a use case of policy.yaml")],
) -> None:
    """Add a customer to params.yaml; its comments stay."""
    from turbo_vaed.config import pipeline
    from turbo_vaed.config.edit import add
    from turbo_vaed.config.load import load

    settings = Settings.from_environment()
    add(settings.root, name, source=source, use_case=use_case)
    pipeline.write(settings.root, name, load(settings.root, name).source)
    print(f"added {name}; run its PoC with: turbo-vaed poc {name}")
    print(
        "its teacher is the demo's small one unless you name yours under "
        f"customers.{name}.encode.teacher_weights in params.yaml"
    )


@app.command("gc")
def collect_garbage(
    customers: Annotated[list[str] | None, typer.Argument(help="all where none is named")] = None,
    dry_run: Annotated[bool, typer.Option(help="say what would go; remove nothing")] = False,
) -> None:
    """Remove from DVC's remote what customers' last runs do not refer to any more.

    Each customer has a prefix of its own there, and is held while it is looked at: one that is
    running is left alone.
    """
    from flows.collect_garbage import collect
    from turbo_vaed.config import load

    settings = Settings.from_environment()
    faults = []
    for customer in customers or sorted(load.read(settings.root).customers):
        try:
            print(f"{customer}: {collect(settings, customer, is_dry=dry_run)}", flush=True)
        except Fault as error:  # the others' objects are no worse for it
            faults.append(str(error))
    if faults:
        raise Fault("\n".join(faults))


@app.command("fetch")
def fetch_outputs(customer: Customer) -> None:
    """Pull what a customer's last run has made into this checkout, wherever it ran."""
    from flows.outputs import fetch
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    found = fetch(Workspace.load(settings.root, customer), settings)
    print(f"the outputs of {', '.join(found) or 'no stage'} of {customer} are in work/{customer}")


@app.command("list")
def list_customers(form: Format = "table") -> None:
    """Customers in params.yaml, with use case and budget."""
    from turbo_vaed.config.edit import everyone

    show(everyone(Settings.from_environment().root), form, "customers")


@app.command("show")
def show_customer(customer: Customer, form: Format = "table") -> None:
    """Every param of a customer, checked as before a run; `config show` says where each is from."""
    from flows.admission import check_configuration
    from turbo_vaed.config import load
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    check_configuration(Workspace.load(settings.root, customer), settings)
    resolved = load.resolve(load.read(settings.root), customer).values
    if form == "json":
        print(json.dumps(resolved, default=str))
        return
    rows = [
        {"param": f"{key}.{leaf}" if leaf else key, "value": value}
        for key, section in resolved.items()
        for leaf, value in (section.items() if isinstance(section, dict) else [("", section)])
    ]
    show(rows, form, f"params of {customer}")
