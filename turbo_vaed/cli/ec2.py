"""`turbo-vaed ec2 …`: a PoC run on the controller of a team's cluster on EC2."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from uuid import UUID

import typer

from turbo_vaed.cli.tables import Customer
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Run a PoC on a team's cluster on EC2.")
_BOOT_SECONDS, _SYNC_SECONDS = 1800.0, 300.0
"""How long to wait for a controller's first `schedule sync`: of one that boots, and of one that is
up, for somebody may have started it just now."""


@app.command("run")
def run_on_ec2(
    customer: Customer,
    is_followed: Annotated[
        bool, typer.Option("--follow/--no-follow", help="report until the run ends")
    ] = True,
) -> None:
    """Run a customer's PoC on the cluster's controller, which is started where none is up.

    The run is the controller's from then on: it goes on when this command ends. Its autoscaler
    brings the machines for it and ends them: docs/cluster.md.
    """
    from flows import remote, schedule
    from turbo_vaed.cluster import controller, environment
    from turbo_vaed.config.load import load
    from turbo_vaed.costs.open_runs import OpenRuns

    settings = Settings.from_environment()
    load(settings.root, customer)
    remote.require_shared_places(settings)
    where = environment.read(settings.root)
    with OpenRuns.open(settings.ledger_url) as open_runs:
        open_runs.require_free(customer)
    with schedule.server():  # before anything is started
        pass
    machine, is_new = controller.ensure(where)
    print(
        f"controller {machine.instance_id} ({machine.instance_type} in {machine.zone}) "
        + ("is started; the run is submitted when it is up, in minutes" if is_new else "is up"),
        flush=True,
    )
    patience = _BOOT_SECONDS if is_new else _SYNC_SECONDS
    run = schedule.run_now(settings, customer, patience_seconds=patience)
    print(f"submitted as {run.name} ({run.id})", flush=True)
    if is_followed:
        _follow(run.id, customer)


@app.command("follow")
def follow_run(
    run: Annotated[str, typer.Argument(help="id of the flow run, as ec2 run printed it")],
) -> None:
    """Report a run until it ends; Ctrl-C leaves it running."""
    try:
        found = UUID(run)
    except ValueError:
        raise typer.BadParameter(f"{run!r} is no id of a flow run") from None
    _follow(found, "CUSTOMER")


def _follow(run: UUID, customer: str) -> None:
    from flows import remote, schedule

    try:
        with schedule.server() as client:
            state = remote.follow(client, run, partial(print, flush=True))
    except KeyboardInterrupt:
        print(
            f"\nthe run goes on; to report it again: turbo-vaed ec2 follow {run}; "
            f"to stop it: turbo-vaed runs abort {customer}"
        )
        raise typer.Exit(0) from None
    if code := remote.exit_code(state):
        print(state.message or "")
        raise typer.Exit(code)
