"""`turbo-vaed cost …`: what runs cost, will cost and would cost."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from turbo_vaed.cli import completion
from turbo_vaed.cli.tables import Customer, Format, console, show
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from turbo_vaed.report.costs.facts import Gathered

app = typer.Typer(no_args_is_help=True, help="What runs cost.")


Period = Annotated[
    str | None, typer.Option("--month", help="YYYY-MM in UTC, such as 2026-08; else all time")
]


@app.command("report")
def cost_report(
    customer: Annotated[
        str | None,
        typer.Option(
            "--customer",
            help="one of params.yaml or the ledger; else all",
            autocompletion=completion.customers,
        ),
    ] = None,
    month: Period = None,
    form: Annotated[
        Literal["table", "csv", "json", "html"],
        typer.Option(
            "--format",
            help="table for people; csv: the detail; html: a page that prints on A4; json: "
            "sentence, period, customer, summary, total, runs, months and notes in one document",
        ),
    ] = "table",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file of the html page; else costs-….html in state/reports"),
    ] = None,
) -> None:
    """What customers and their runs cost: spent, budget, left, saved by spot, wasted, per kept
    step and per dB; then by run and stage.

    json: money, node-seconds and dB are texts with all their digits, null is not known, and
    `unknown` says why. A charge belongs to the month in which it began. docs/cost-reports.md
    says what each figure means and where it comes from.
    """
    from turbo_vaed.report.costs.formats import csv_text, json_text, show_tables
    from turbo_vaed.report.costs.page import costs_page

    if out is not None and form != "html":
        raise UserError(f"--out goes with --format html; redirect what --format {form} prints")
    settings = Settings.from_environment()
    statement = _gather(settings, customer, month).statement
    if form == "html":
        _write_page(settings, costs_page(statement), out, "costs", customer or "all", month)
    elif form == "csv":
        sys.stdout.write(csv_text(statement))
    elif form == "json":
        print(json_text(statement))
    else:
        show_tables(statement, console())


@app.command("portfolio")
def cost_portfolio(
    month: Period = None,
    form: Annotated[
        Literal["html", "table", "json"],
        typer.Option("--format", help="html: a page that prints on A4; table; json"),
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file of the page; else portfolio-….html in state/reports"),
    ] = None,
) -> None:
    """All customers in params.yaml and in the ledger on one page, for ROI reviews.

    What each spent, its budget and waste, its last verdict, champion, best dB and retention, what
    a dB cost, and what the last run would save a month and when that pays back.
    """
    from turbo_vaed.costs import Ledger
    from turbo_vaed.report.costs import portfolio

    if out is not None and form != "html":
        raise UserError(f"--out goes with --format html; redirect what --format {form} prints")
    settings = Settings.from_environment()
    gathered = _gather(settings, None, month)
    champions = portfolio.find_champions(settings.mlflow_tracking_uri, gathered)
    with Ledger.open(settings.ledger_url) as ledger:
        returns = portfolio.find_returns(settings.root, ledger, gathered)
    if form == "html":
        page = portfolio.portfolio_page(gathered, champions, returns)
        print(portfolio.sentence(gathered))
        _write_page(settings, page, out, "portfolio", "all", month)
    elif form == "json":
        print(
            json.dumps(
                portfolio.portfolio_document(gathered, champions, returns), ensure_ascii=False
            )
        )
    else:
        rows = portfolio.terminal_rows(gathered, champions, returns)
        show(rows, form, portfolio.sentence(gathered))


def _gather(settings: Settings, customer: str | None, month: str | None) -> Gathered:
    """The statement of the ledger; on-demand prices are those that were read from AWS before."""
    from turbo_vaed.costs import Ledger
    from turbo_vaed.costs.aws_prices import cached_on_demand
    from turbo_vaed.costs.months import Month
    from turbo_vaed.report.costs.facts import gather

    period = None if month is None else Month.parse(month)
    prices = settings.root / "state" / "prices"
    with Ledger.open(settings.ledger_url) as ledger:
        return gather(
            settings.root,
            ledger,
            on_demand_usd_per_hour=partial(cached_on_demand, prices),
            customer=customer,
            period=period,
        )


def _write_page(
    settings: Settings, page: str, out: Path | None, kind: str, whom: str, month: str | None
) -> None:
    name = f"{kind}-{re.sub('[^A-Za-z0-9_-]', '_', whom)}-{month or 'all-time'}.html"
    path = out or settings.root / "state" / "reports" / name
    _write_text("--out", path, page)
    print(path)


def _write_text(option: str, path: Path, text: str) -> None:
    from turbo_vaed.runtime.files import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error}") from error


@app.command("reconcile")
def reconcile_bill(
    month: Annotated[str, typer.Option("--month", help="YYYY-MM, in UTC as AWS bills")],
    all_rows: Annotated[bool, typer.Option("--all", help="also the runs that agree")] = False,
    form: Format = "table",
) -> None:
    """Compare the ledger with AWS' bill of a month, by customer and run; change neither.

    Lists every difference above 1 % of the bill or 0.50 USD, and exits with 1 if there is any.
    AWS charges 0.01 USD for each page that Cost Explorer is asked for; nothing is booked.
    """
    from turbo_vaed.costs import Ledger
    from turbo_vaed.costs.bill import month_bill
    from turbo_vaed.costs.months import Month
    from turbo_vaed.costs.reconcile import document, not_billed, reconcile, remarks, table

    wanted = Month.parse(month)
    with Ledger.open(Settings.from_environment().ledger_url) as ledger:
        charges = ledger.charges(since=wanted.since, until=wanted.until)
    found = reconcile(charges, month_bill(wanted))
    if form == "json":
        print(json.dumps(document(found, every_row=all_rows)))
    else:
        print("\n".join([f"{found.sentence}.", *found.caveats]))
        rows = table(found, every_row=all_rows)
        if rows:
            show(rows, form, f"ledger and bill of {wanted}")
        if all_rows:
            show(not_billed(found), form, "not billed by AWS: market local")
        for remark in remarks(found):
            print(remark)
    if found.differing:
        raise typer.Exit(1)


@app.command("simulate")
def simulate_budgets(
    traces: Annotated[int, typer.Option("--traces", min=1, help="random markets")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    form: Format = "table",
    chart: Annotated[
        Path | None, typer.Option("--chart", help="an SVG file to draw the runs into")
    ] = None,
) -> None:
    """Replay the budget's policy on random prices and interruptions: is every budget kept?

    Exits with 1 if one was not.
    """
    from turbo_vaed.costs.simulate import simulate, summary
    from turbo_vaed.report.simulation import simulation_svg
    from turbo_vaed.runtime.progress import progress

    with progress("traces", traces) as update:
        replays = simulate(traces, seed, report_done=lambda done: update(done, ""))
    found = summary(replays)
    if chart is not None:
        _write_text("--chart", chart, simulation_svg(replays))
    if form == "json":
        print(json.dumps(found))
    else:
        show(
            [{"figure": k.replace("_", " "), "value": _formatted(k, v)} for k, v in found.items()],
            form,
            f"{traces} traces of seed {seed}",
        )
    if found["overspent"]:
        raise typer.Exit(1)


def _formatted(figure: str, value: float | None) -> object:
    """A figure of the simulation; shares as per cent."""
    from turbo_vaed.costs import format_usd

    if value is None or isinstance(value, int):
        return value
    if figure.endswith("_usd"):
        return format_usd(Decimal(repr(value)))
    return f"{value:.2%}"


@app.command("estimate")
def estimate_next(customer: Customer) -> None:
    """What the next run of `turbo-vaed poc CUSTOMER` would do and cost, with its range.

    Nothing is run, but for DVC's stage `params`, which costs nothing. Exits with 1 if the run
    would be refused, and says what would fit.
    """
    from flows import admission

    print(admission.preview(Settings.from_environment(), customer))


@app.command("quote")
def quote_machines(customer: Customer, form: Format = "table") -> None:
    """Where a customer's distillation would cost the least: type, market and zone.

    Expected cost to finish all steps, interruptions and what they make be done again included. It
    asks AWS for prices; those that AWS does not return are shown as unknown, with the reason.
    """
    from turbo_vaed.planning.quote import quote
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    workspace = Workspace.load(settings.root, customer)
    found, budget_usd = quote(workspace, settings), workspace.params.budget.run_usd
    if form == "json":
        print(json.dumps(found.document(budget_usd)))
        return
    print(found.sentence)
    rows = found.rows(budget_usd)
    notes = ("why_unknown", "warning")
    show([{k: v for k, v in row.items() if k not in notes} for row in rows], form, "machines")
    print(f"rests on {found.basis}")
    for why, count in Counter(row["why_unknown"] for row in rows if row["why_unknown"]).items():
        print(f"{count} prices are unknown: {why}")
    for warning, count in Counter(row["warning"] for row in rows if row["warning"]).items():
        print(f"{count} prices are old: {warning}")


@app.command("roi")
def return_on_investment(
    customer: Customer,
    form: Format = "table",
    chart: Annotated[
        Path | None, typer.Option("--chart", help="an SVG file to draw the tornado into")
    ] = None,
) -> None:
    """What a customer's PoC would return: what its last run measured, what finance.yaml assumes."""
    from turbo_vaed.costs import Ledger
    from turbo_vaed.report.roi import document, sensitivities, table
    from turbo_vaed.report.tornado import tornado_svg
    from turbo_vaed.report.wording import return_on_investment
    from turbo_vaed.roi.measured import cost_of_poc, read_roi
    from turbo_vaed.workspace import Workspace

    settings = Settings.from_environment()
    workspace = Workspace.load(settings.root, customer)
    with Ledger.open(settings.ledger_url) as ledger:
        cost = cost_of_poc(ledger, customer)
    found = read_roi(workspace.work, cost=cost, assumptions=workspace.params.roi)
    if chart is not None:
        _write_text("--chart", chart, tornado_svg(found, f"{customer}: what the return depends on"))
    if form == "json":
        print(json.dumps(document(found, customer)))
        return
    print(return_on_investment(found))
    rows = table(found)
    for title, columns in (
        ("what it would return", ("figure", "low", "likely", "high", "unit", "kind")),
        ("where each figure is from", ("figure", "kind", "source")),
    ):
        show([{key: row[key] for key in columns} for row in rows], form, title)
    show(sensitivities(found), form, "value over the horizon, one input at a time")
