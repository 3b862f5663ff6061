"""`turbo-vaed fleet`: how all customers stand, and the pages that a team looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from turbo_vaed.cli.tables import Format, show
from turbo_vaed.settings import Settings

app = typer.Typer(help="How all customers stand, and the pages that a team looks at.")


@app.callback(invoke_without_command=True)
def show_fleet(
    context: typer.Context,
    form: Format = "table",
    alarms: Annotated[bool, typer.Option("--alarms", help="only customers with an alarm")] = False,
) -> None:
    """How every customer stands, those that need attention first: last run, champion, spending,
    next run, held alarms. docs/incidents.md says what each alarm means."""
    if context.invoked_subcommand is not None:
        return
    from flows.publish import read_fleet
    from turbo_vaed.report.fleet.page import document, sentence, terminal_rows

    fleet = read_fleet(Settings.from_environment())
    shown = replace(fleet, rows=fleet.alarmed) if alarms else fleet
    if form == "json":
        print(json.dumps(document(shown), ensure_ascii=False))
        return
    show(terminal_rows(shown), form, sentence(fleet))
    for note in fleet.notes:
        print(note)


@app.command("publish")
def publish() -> None:
    """Publish what is missing of every customer (report, record, costs, champion), and make the
    fleet's page and the metrics again.

    Each run publishes its own when it ends; this is for a new site, for what the site missed while
    it did not answer, and after customers or limits have changed. Only what differs is sent.
    TURBO_VAED_SITE is the place, a folder or s3://BUCKET/PREFIX; without it, state/site.
    """
    from flows.publish import INDEX, publish_all
    from turbo_vaed.config.load import read
    from turbo_vaed.report.fleet.page import sentence
    from turbo_vaed.runtime.progress import progress

    settings = Settings.from_environment()
    with progress("customers", len(read(settings.root).customers)) as update:
        fleet, site = publish_all(settings, lambda done: update(done, ""))
    print(sentence(fleet))
    print(f"{site.address}/{INDEX}")
    if settings.metrics_file is not None:
        print(settings.metrics_file)


@app.command("metrics")
def print_metrics() -> None:
    """Print the metrics of the fleet in Prometheus' text format; TURBO_VAED_METRICS names a file
    that they are written to after each run."""
    from flows.publish import read_fleet
    from turbo_vaed.report.fleet.metrics import exposition

    print(exposition(read_fleet(Settings.from_environment())), end="")
