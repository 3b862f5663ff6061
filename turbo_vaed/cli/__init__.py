"""`turbo-vaed …`: arguments in, exit code out.

0 done, 1 refused (gate, budget, data), 2 a user's mistake, 3 a fault, 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import traceback
from typing import Annotated

import typer

from turbo_vaed.cli import (
    backup,
    cluster,
    completion,
    config,
    cost,
    customer,
    devices,
    distill,
    ec2,
    fleet,
    gate,
    ledger,
    node,
    registry,
    report,
    runs,
    schedule,
    teacher,
    upgrade,
)
from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.errors import CorruptFile, TurboVaedError
from turbo_vaed.runtime import garbage, logs
from turbo_vaed.runtime.interrupts import signals_interrupt
from turbo_vaed.settings import Settings, logs_are_json, set_environment_defaults

_log = logging.getLogger("turbo_vaed.cli")
app = typer.Typer(
    name="turbo-vaed",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Distil the decoder of a video VAE into one that a phone runs, one PoC per customer.",
)
app.add_typer(customer.app, name="customer")
app.add_typer(config.app, name="config")
app.add_typer(backup.app, name="backup")
app.add_typer(distill.app, name="distill")
app.add_typer(node.app, name="node")
app.add_typer(cost.app, name="cost")
app.add_typer(cluster.app, name="cluster")
app.add_typer(ec2.app, name="ec2")
app.add_typer(ledger.app, name="ledger")
app.add_typer(registry.app, name="registry")
app.add_typer(gate.app, name="gate")
app.add_typer(devices.app, name="devices")
app.add_typer(report.app, name="report")
app.add_typer(runs.app, name="runs")
app.add_typer(fleet.app, name="fleet")
app.add_typer(schedule.app, name="schedule")
app.add_typer(teacher.app, name="teacher")
app.add_typer(upgrade.app, name="upgrade")


def main() -> int:
    """Entry point: run a verb and return its exit code."""
    garbage.collect_rarely()
    garbage.skip_last_collections()
    set_environment_defaults()
    try:
        logs.of_command()
        # Typer returns the code of an `Exit` that a command raises.
        with signals_interrupt():
            returned = app(prog_name="turbo-vaed", standalone_mode=False)
        if returned == 130:  # as it ends an interrupted command
            print("interrupted; run the same command again to resume", file=sys.stderr)
        return returned if isinstance(returned, int) else 0
    except TurboVaedError as error:
        _print_error(error)
        return error.exit_code
    except Exception as error:
        usage = getattr(error, "exit_code", None)
        if usage is None:
            _print_defect(error)
            return 3
        getattr(error, "show", lambda: None)()
        return int(usage)
    finally:
        logs.finish()


def _print_error(error: TurboVaedError) -> None:
    lines = [f"{_kind(error)}: {error}", *getattr(error, "__notes__", ())]
    if _has_json_logs():
        _log.error("%s", "\n".join(lines))
    else:
        print(*lines, sep="\n", file=sys.stderr)


def _print_defect(error: Exception) -> None:
    if _has_json_logs():
        _log.error("fault: %s", error, exc_info=error)
    else:
        traceback.print_exc()


def _has_json_logs() -> bool:
    try:
        return logs_are_json()
    except TurboVaedError:  # which is what is printed
        return False


def _kind(error: TurboVaedError) -> str:
    if isinstance(error, CorruptFile):
        return "corrupt"
    return {1: "refused", 2: "error", 130: "stopped"}.get(error.exit_code, "fault")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"turbo-vaed {importlib.metadata.version('turbo-vaed')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `turbo-vaed` itself; its help is the app's."""


@app.command("poc")
def run_poc(customer: Customer) -> None:
    """Run the PoC of a customer: validate, distil, package, measure, judge, register, report."""
    from flows.start import start

    logs.of_run(customer)
    outcome = start(Settings.from_environment(), customer)
    print(outcome.sentence)
    if outcome.report is not None:
        print(f"report: {outcome.report}")
    if outcome.result != "passes":
        raise typer.Exit(1)


@app.command("stage")
def run_stage(
    name: Annotated[
        str,
        typer.Argument(
            help="params, validate, clip, encode, distill, …", autocompletion=completion.stages
        ),
    ],
    customer: Customer,
) -> None:
    """Run one stage and meter it; this is what dvc.yaml calls."""
    from turbo_vaed.metering.outcome import recorded
    from turbo_vaed.metering.run_stage import run_metered
    from turbo_vaed.runtime.processes import ending_with_parent

    settings = Settings.from_environment()
    logs.of_run(customer, settings.run_id or "")
    with recorded() as figures, ending_with_parent():
        figures |= run_metered(settings, name, customer)


@app.command("doctor")
def examine_machine(form: Format = "table") -> None:
    """What is installed, what is reachable, what is missing and how to get it."""
    from turbo_vaed.cli.doctor import examine

    rows = examine(Settings.from_environment())
    show(rows, form, "doctor")
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(3)
