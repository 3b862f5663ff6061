"""`turbo-vaed runs`: which customers' runs go on, on whatever machine, and how to stop one."""

from __future__ import annotations

import getpass
import os
import platform
import time
from datetime import datetime
from typing import Annotated

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import Fault, UserError
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Which runs go on, and how to stop one.")
_LOOK_SECONDS = 1.0


@app.command("list")
def list_runs(
    all_: Annotated[bool, typer.Option("--all", help="also those that have ended")] = False,
    form: Format = "table",
) -> None:
    """The runs that go on, and those that died: one per customer, where it runs, and what it does.

    A dead run was not seen for two minutes, or its process has ended. The customer's next run
    settles it, or `turbo-vaed runs settle`.
    """
    from turbo_vaed.costs.open_runs import OpenRuns

    with OpenRuns.open(Settings.from_environment().ledger_url) as open_runs:
        rows = [
            {
                "customer": run.customer,
                "state": run.state,
                "run": run.run or None,
                "step": run.step or None,
                "by": str(run.holder),
                "began": _shown(run.began_at),
                "last seen": _shown(run.ended_at or run.seen_at),
            }
            for run in open_runs.all()
            if all_ or run.state != "ended"
        ]
    show(rows, form, "runs")


@app.command("abort")
def abort(
    customer: Customer,
    wait: Annotated[
        float, typer.Option(min=0, help="seconds to wait until it has ended; 0: do not wait")
    ] = 120.0,
) -> None:
    """Stop a customer's run, on whatever machine it is: its training is saved, its costs are
    charged, and its report is written. The next run resumes.

    A run that died is settled: its reservation and its runs in MLflow are ended.
    """
    from flows.open_run import settle
    from turbo_vaed.costs.open_runs import OpenRuns

    settings = Settings.from_environment()
    by = f"{_user()} on {platform.node()}"
    with OpenRuns.open(settings.ledger_url) as open_runs:
        found = open_runs.abort(customer, by)
        if found is None:
            raise UserError(f"no run of {customer} goes on; turbo-vaed runs list has those that do")
        what = f"run {found.run}" if found.run else f"the run of {customer}"
        if found.state == "dead":
            if open_runs.end(found):
                settle(settings, found)
            print(f"{what} had died ({found.holder}); what it left is settled")
            return
        print(f"{what} ({found.holder}) was asked to stop", flush=True)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            last = open_runs.of(customer)
            if last is None or last.token != found.token or last.state == "ended":
                print(f"{what} has ended")
                return
            if last.state == "dead" and open_runs.end(last):
                settle(settings, last)
                print(f"{what} has died; what it left is settled")
                return
            time.sleep(_LOOK_SECONDS)
    if wait:
        raise Fault(
            f"{what} has not ended after {wait:.0f} s; turbo-vaed runs list shows its state"
        )


@app.command("settle")
def settle_runs() -> None:
    """Settle all runs that died: end their reservations, their runs in MLflow and in Prefect. A
    team's Prefect does this every quarter of an hour, once `schedule sync` has run."""
    from flows.open_run import settle_dead

    found = settle_dead(Settings.from_environment())
    for dead in found:
        print(f"settled: run {dead.run or 'without an id'} of {dead.customer} ({dead.holder})")
    if not found:
        print("no run has died")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
