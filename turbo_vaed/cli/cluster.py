"""`turbo-vaed cluster …`: a team's Ray cluster on EC2."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="A team's Ray cluster on EC2, by Ray's autoscaler.")


@app.command("config")
def show_config(
    customer: Customer,
    write: Annotated[
        bool, typer.Option("--write", help="into infra/ray/cluster.yaml, which a head reads")
    ] = False,
    head: Annotated[
        str, typer.Option(help="address of Ray's head, HOST:PORT; the controller's by default")
    ] = "",
    form: Format = "table",
) -> None:
    """Which machines the autoscaler starts for a customer's run, in this order, and at what price.

    From prices.candidates in finance.yaml and infra/ray/environment.yaml. A run on the controller
    writes the configuration by itself.
    """
    from turbo_vaed.cluster import autoscaler, controller, environment
    from turbo_vaed.cluster.nodes import price_book
    from turbo_vaed.planning import cluster_config
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    workspace = Workspace.load(settings.root, customer)
    book = price_book(workspace.params, settings)
    if write and not head:
        found = controller.find(environment.read(settings.root))
        if found is None:
            raise UserError("the cluster has no controller; name the address with --head")
        head = autoscaler.head_address(found.private_ip)
    config = cluster_config.plan(
        settings.root,
        workspace.params.prices,
        head,
        fits_on_demand=cluster_config.fits_on_demand(workspace, settings, book),
        book=book,
    )
    show(config.rows(), form, "machines, in this order")
    for why in config.left_out:
        print(f"left out: {why}", file=sys.stderr)
    if write:
        print(cluster_config.write(settings.root, config), file=sys.stderr)


@app.command("status")
def show_status(form: Format = "table") -> None:
    """The cluster's machines and their prices, what is starting, and what EC2 refused, and why."""
    from turbo_vaed.cluster import status
    from turbo_vaed.cluster.nodes import book_of
    from turbo_vaed.config.load import read, team_prices
    from turbo_vaed.planning.cluster_config import REFUSALS

    settings = Settings.from_environment()
    if ":" not in (settings.ray_address or "") or "://" in (settings.ray_address or ""):
        raise UserError(
            f"RAY_ADDRESS is {settings.ray_address or 'not set'}; expected the address of the "
            "cluster's head, HOST:6379, which the controller has set for its Prefect worker"
        )
    book = book_of(team_prices(read(settings.root)), settings)
    show(status.rows(settings.ray_address or "", book, settings.root / REFUSALS), form, "cluster")


@app.command("start")
def start() -> None:
    """On the controller: start Ray's head with its autoscaler, then a Prefect worker, which stays.

    Its user data calls this at boot. Nothing is started on demand until a run's budget allows it.
    """
    from flows import schedule
    from turbo_vaed.cluster import autoscaler, environment, machines
    from turbo_vaed.cluster.metadata import Metadata
    from turbo_vaed.cluster.nodes import book_of
    from turbo_vaed.config.load import read, team_prices
    from turbo_vaed.planning import cluster_config
    from turbo_vaed.settings import metadata_endpoint

    settings = Settings.from_environment()
    prices = team_prices(read(settings.root))
    _, address = Metadata(metadata_endpoint()).address()
    config = cluster_config.plan(
        settings.root,
        prices,
        autoscaler.head_address(address),
        book=book_of(prices, settings),
    )
    path = cluster_config.write(settings.root, config)
    os.environ |= machines.start_head(environment.read(settings.root), path)
    schedule.sync(settings)  # of this checkout, where the worker finds it
    prefect = shutil.which("prefect", path=os.path.dirname(sys.executable)) or "prefect"
    os.execvp(prefect, [prefect, "worker", "start", "--pool", schedule.POOL, "--type", "process"])
