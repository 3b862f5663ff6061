"""`turbo-vaed ec2 …`: a PoC run on a machine that is started for it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from turbo_vaed.cli.tables import Customer
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from flows.ec2.picking import Picked
    from flows.runs import Run
    from turbo_vaed.poc import Poc

app = typer.Typer(no_args_is_help=True, help="A PoC run on a machine that is started for it.")

Type = Annotated[
    str | None, typer.Option("--type", help="one of prices.candidates; else the cheapest")
]
Market = Annotated[
    Literal["spot", "on-demand"] | None, typer.Option("--market", help="else the cheaper")
]


@app.command("config")
def show_config(customer: Customer, instance_type: Type = None, market: Market = None) -> None:
    """Pick type, market and zone, and write what Ray's launcher would be told; start nothing."""
    from flows.ec2 import telling

    settings = Settings.from_environment()
    poc, run, picked = _pick(settings, customer, instance_type, market)
    print(telling.prepare(poc, settings, picked, run, name=telling.PLANNED))


@app.command("run")
def run_on_ec2(customer: Customer, instance_type: Type = None, market: Market = None) -> None:
    """Run a customer's PoC on the EC2 machine where distillation is expected to cost the least.

    Type, market and zone are those of `turbo-vaed cost quote CUSTOMER`. The machine bears the run's
    tags, runs `turbo-vaed poc CUSTOMER`, and is ended when that ends, or when what may be spent is
    spent. A run that lost its machine goes on with the same command. Start it where the ledger,
    MLflow and the bucket of checkpoints are named by the environment: docs/costs.md.
    """
    from flows import runs
    from flows.ec2 import running, telling
    from turbo_vaed.costs import Ledger

    settings = Settings.from_environment()
    poc, run, picked = _pick(settings, customer, instance_type, market)
    with runs.alone(poc.work, customer):
        config = telling.prepare(poc, settings, picked, run, name=telling.MACHINE)
        runs.write(poc.work, run)
        began = datetime.now(UTC)
        try:
            with running.started(config):
                code = running.run_there(poc, config)
        finally:
            with Ledger.open(settings.ledger_url) as ledger:
                running.charge_rest(ledger, poc, run, picked, began=began, ended=datetime.now(UTC))
    print(f"report: {poc.report}")
    if code:
        raise typer.Exit(code)


@app.command("down")
def end_machine(customer: Customer) -> None:
    """End a customer's machine, after a crash of `ec2 run`."""
    from flows.ec2 import running, telling
    from turbo_vaed.poc import Poc

    poc = Poc.load(Settings.from_environment().root, customer)
    config = telling.folder(poc) / telling.MACHINE
    if not config.is_file():
        raise UserError(f"no machine of {customer} was left by this checkout: no {config}")
    running.end(config)


def _pick(
    settings: Settings, customer: str, instance_type: str | None, market: str | None
) -> tuple[Poc, Run, Picked]:
    """The customer, its run (not written yet), and the machine for it. Ends where nothing is to
    be done."""
    from flows import dvc, effects
    from flows.ec2.picking import pick
    from turbo_vaed.poc import STAGES

    poc = effects.preflight(settings, customer)
    stale = dvc.stale_stages(settings.root, customer, ("params", *STAGES))
    run = effects.run_to_do(poc, stale)
    if run is None:
        print("Nothing changed since the last run: no machine is needed.")
        raise typer.Exit(0)
    picked = pick(poc, settings, run, instance_type=instance_type, market=market)
    print(picked.sentence)
    return poc, run, picked
