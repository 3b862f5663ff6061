"""`turbo-vaed ec2 …`: a PoC run on a machine that is started for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from turbo_vaed.cli.tables import Customer
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from flows.launch.instance_selection import Selection
    from flows.to_do import ToDo
    from turbo_vaed.workspace import Workspace

app = typer.Typer(no_args_is_help=True, help="Run a PoC on an EC2 machine that is started for it.")

Type = Annotated[
    str | None, typer.Option("--type", help="one of prices.candidates; the cheapest by default")
]
Market = Annotated[
    Literal["spot", "on-demand"] | None, typer.Option("--market", help="by default the cheaper")
]


@app.command("config")
def show_config(customer: Customer, instance_type: Type = None, market: Market = None) -> None:
    """Select type, market and zone, and write the configuration for the launcher; start nothing."""
    from flows.launch import launch_config

    settings = Settings.from_environment()
    workspace, todo, selection = _select_instance(settings, customer, instance_type, market)
    print(
        launch_config.prepare(workspace, settings, selection, todo.run, name=launch_config.PLANNED)
    )


@app.command("run")
def run_on_ec2(customer: Customer, instance_type: Type = None, market: Market = None) -> None:
    """Run a customer's PoC on the EC2 machine on which it is expected to cost the least.

    Type, market and zone are those of `turbo-vaed cost quote CUSTOMER`. The machine has the run's
    tags, runs `turbo-vaed poc CUSTOMER`, and is ended when that ends or the budget is spent. A run
    that lost its machine resumes with the same command. The environment must name the ledger,
    MLflow and the bucket of checkpoints: docs/costs.md.
    """
    from flows import runs
    from flows.launch import launch, launch_config, settlement
    from flows.to_do import note_begun
    from turbo_vaed.costs import Ledger
    from turbo_vaed.costs.open_runs import OpenRuns

    settings = Settings.from_environment()
    workspace, todo, selection = _select_instance(settings, customer, instance_type, market)
    run = todo.run
    with OpenRuns.open(settings.ledger_url) as open_runs:
        open_runs.require_free(customer)  # the machine's own run takes it
    with runs.customer_lock(workspace.work, customer):
        began, clock = datetime.now(UTC), time.monotonic()
        settlement.note(workspace, run, selection, began=began)
        try:
            config = launch_config.prepare(
                workspace, settings, selection, run, name=launch_config.MACHINE
            )
        except BaseException:
            settlement.record(workspace).unlink()  # nothing was started
            raise
        runs.write(workspace.work, run)
        ran = launch.LaunchResult(0, 0)
        try:
            with launch.started(config):
                if "distill" in todo.stages:
                    note_begun(workspace, run)
                ran = launch.run_there(workspace, config)
        finally:
            ended = began + timedelta(seconds=time.monotonic() - clock)
            with Ledger.open(settings.ledger_url) as ledger:
                if not config.exists():  # else it could not be ended: `ec2 down` charges it
                    settlement.settle(ledger, workspace, ended=ended)
                size, place = ran.fetched_bytes, settings.outbox_folder
                if size:
                    settlement.fetched(ledger, workspace, run, size, at=ended, outbox_folder=place)
    print(f"report: {workspace.report}")
    if ran.exit_code:
        raise typer.Exit(ran.exit_code)


@app.command("down")
def end_machine(customer: Customer) -> None:
    """End a customer's machine after a crash of `ec2 run`, and charge what is not charged yet."""
    from flows.launch import launch, launch_config, settlement
    from turbo_vaed.costs import Ledger, format_usd, total_usd
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    workspace = Workspace.load(settings.root, customer)
    config = launch_config.folder(workspace) / launch_config.MACHINE
    if not config.is_file() and not settlement.record(workspace).is_file():
        raise UserError(f"this checkout has no machine of {customer}: no {config}")
    if config.is_file():
        launch.end(config)
    with Ledger.open(settings.ledger_url) as ledger:
        charges = settlement.settle(ledger, workspace, ended=datetime.now(UTC))
    if charges:
        usd = total_usd(charge.amount_usd for charge in charges)
        print(f"charged what was not charged yet: {format_usd(usd)}")


def _select_instance(
    settings: Settings, customer: str, instance_type: str | None, market: str | None
) -> tuple[Workspace, ToDo, Selection]:
    """The customer, its run (not written yet), and the machine for it. Exits where there is nothing
    to do."""
    from flows import admission
    from flows.launch.instance_selection import select_instance
    from flows.to_do import to_do_now

    workspace = admission.preflight(settings, customer)
    todo = to_do_now(workspace, settings)
    if todo is None:
        print("Nothing has changed since the last run: no machine is needed.")
        raise typer.Exit(0)
    selection = select_instance(
        workspace, settings, todo, instance_type=instance_type, market=market
    )
    print(selection.sentence)
    return workspace, todo, selection
