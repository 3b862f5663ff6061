"""`turbo-vaed schedule`: when a team's Prefect runs which customers."""

from __future__ import annotations

import sys
from datetime import datetime

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="When a team's Prefect runs which customers.")


@app.command("sync")
def sync(form: Format = "table") -> None:
    """Bring Prefect's schedules to what params.yaml says; paused ones stay paused."""
    from flows import schedule

    settings = Settings.from_environment()
    _show(schedule.sync(settings), form)
    if settings.alarm_webhook:
        print("alarms go to the webhook in TURBO_VAED_ALARM_WEBHOOK", file=sys.stderr)
    else:
        print(
            "nobody is notified of a run that fails, is refused or does not end; set "
            "TURBO_VAED_ALARM_WEBHOOK to a URL, and sync again",
            file=sys.stderr,
        )


@app.command("list")
def list_schedules(form: Format = "table") -> None:
    """The schedules in Prefect: when each customer runs next, and what its last run came to."""
    from flows import schedule

    _show(schedule.rows(), form)


@app.command("pause")
def pause(customer: Customer) -> None:
    """Start no more runs of a customer until `schedule resume`, also none that waits; one that goes
    on is not stopped."""
    from flows import schedule

    schedule.set_paused(customer, True)
    print(f"{customer} is paused")


@app.command("resume")
def resume(customer: Customer) -> None:
    """Let a paused customer run again when its schedule says."""
    from flows import schedule

    schedule.set_paused(customer, False)
    print(f"{customer} runs again when its schedule says")


@app.command("run-now")
def run_now(customer: Customer) -> None:
    """Have a worker run a customer at once."""
    from flows import schedule

    run = schedule.run_now(Settings.from_environment(), customer)
    print(f"{run.name} waits for a worker of the pool {schedule.POOL}")


def _show(rows: list, form: str) -> None:  # type: ignore[type-arg]
    shown = [
        {
            "customer": row.customer,
            "cron": row.cron,
            "timezone": row.timezone,
            "paused": row.is_paused,
            "next": _shown(row.next_at),
            "last": row.last or None,
        }
        for row in rows
    ]
    show(shown, form, "schedules")


def _shown(at: datetime | None) -> str | None:
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else None
