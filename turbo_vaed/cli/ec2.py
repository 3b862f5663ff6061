"""`turbo-vaed ec2 …`: a PoC run on a machine that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from turbo_vaed.cli.tables import Customer
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
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
    print(_prepare(customer, instance_type, market))


@app.command("run")
def run_on_ec2(customer: Customer, instance_type: Type = None, market: Market = None) -> None:
    """Run a customer's PoC on the EC2 machine where distillation is expected to cost the least.

    Type, market and zone are those of `turbo-vaed cost quote CUSTOMER`. The machine bears the run's
    tags, runs `turbo-vaed poc CUSTOMER`, and is ended when that ends, or when what may be spent is
    spent. A run that lost its machine goes on with the same command. Start it where the ledger,
    MLflow and the bucket of checkpoints are named by the environment: docs/costs.md.
    """
    from flows import ec2

    config = _prepare(customer, instance_type, market)
    poc = _poc(customer)
    with ec2.started(config):
        code = ec2.run_there(poc, config)
    print(f"report: {poc.report}")
    if code:
        raise typer.Exit(code)


@app.command("down")
def end_machine(customer: Customer) -> None:
    """End a customer's machine, after a crash of `ec2 run`."""
    from flows import ec2

    poc = _poc(customer)
    config = ec2.folder(poc) / "machine.yaml"
    if not config.is_file():
        raise UserError(f"no machine was started for {customer} from here: no {config}")
    ec2.end(config)


def _poc(customer: str) -> Poc:
    from turbo_vaed.poc import Poc

    return Poc.load(Settings.from_environment().root, customer)


def _prepare(customer: str, instance_type: str | None, market: str | None) -> Path:
    from flows import ec2, effects, runs

    settings = Settings.from_environment()
    poc = effects.preflight(settings, customer)
    last = runs.read(poc.work)
    run = last if last is not None and last.status == "open" else runs.begin(poc.work, customer)
    picked = ec2.pick(poc, settings, run, instance_type=instance_type, market=market)
    config = ec2.prepare(poc, settings, picked, run)
    print(picked.sentence)
    return config
