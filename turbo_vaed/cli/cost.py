"""`turbo-vaed cost …`: what runs cost, will cost and would cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from turbo_vaed.cli.tables import Customer, Format, show
from turbo_vaed.settings import Settings

app = typer.Typer(no_args_is_help=True, help="What runs cost.")


@app.command("report")
def cost_report(customer: Customer, form: Format = "table") -> None:
    """What each run of a customer cost, by stage."""
    from turbo_vaed import params
    from turbo_vaed.costs import Ledger

    settings = Settings.from_environment()
    params.load(settings.root / "params.yaml", customer)
    with Ledger.open(settings.ledger_url) as ledger:
        runs = dict.fromkeys(c.run for c in ledger.charges(customer=customer))
        rows = [
            {
                "run": run,
                "stage": stage,
                "node_seconds": cost.node_seconds,
                "usd": cost.usd,
                "wasted_usd": cost.wasted_usd,
            }
            for run in runs
            for stage, cost in ledger.by_stage(run).items()
        ]
    show(rows, form, f"costs of {customer}")


@app.command("reconcile")
def reconcile_bill(
    month: Annotated[str, typer.Option("--month", help="YYYY-MM, in UTC as AWS bills")],
    all_rows: Annotated[bool, typer.Option("--all", help="also the runs that agree")] = False,
    form: Format = "table",
) -> None:
    """Compare the ledger with AWS' bill of a month, by customer and run; change neither.

    Tells every difference above 1 % of the bill or 0.50 USD, and returns 1 where there is one.
    AWS charges 0.01 USD for each page that Cost Explorer is asked for; nothing is booked.
    """
    from turbo_vaed.costs import Ledger
    from turbo_vaed.costs.bill import month_bill
    from turbo_vaed.costs.months import Month
    from turbo_vaed.costs.reconcile import document, not_billed, reconcile, remarks, table

    wanted = Month.parse(month)
    with Ledger.open(Settings.from_environment().ledger_url) as ledger:
        charges = ledger.charges(since=wanted.begins, until=wanted.ends)
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

    Returns 1 where one was not.
    """
    from turbo_vaed.costs.simulate import simulate, summary
    from turbo_vaed.progress import progress
    from turbo_vaed.report.simulation import simulation_svg

    with progress("traces", traces) as update:
        replays = simulate(traces, seed, told=lambda done: update(done, ""))
    found = summary(replays)
    if chart is not None:
        chart.write_text(simulation_svg(replays))
    if form == "json":
        print(json.dumps(found))
    else:
        show(
            [{"figure": k.replace("_", " "), "value": v} for k, v in found.items()],
            form,
            f"{traces} traces of seed {seed}",
        )
    if found["overspent"]:
        raise typer.Exit(1)


@app.command("quote")
def quote_machines(customer: Customer, form: Format = "table") -> None:
    """Where a customer's distillation would cost the least: type, market and zone.

    Expected cost to finish all steps, interruptions and what they make be done again included. It
    asks AWS for prices; those that it does not tell are shown as unknown, with the reason.
    """
    from turbo_vaed.poc import Poc
    from turbo_vaed.stages.quote import quote

    settings = Settings.from_environment()
    poc = Poc.load(settings.root, customer)
    found, budget_usd = quote(poc, settings), poc.params.budget.run_usd
    if form == "json":
        print(json.dumps(found.document(budget_usd)))
        return
    print(found.sentence)
    rows = found.rows(budget_usd)
    show([{k: v for k, v in row.items() if k != "why_unknown"} for row in rows], form, "machines")
    print(f"rests on {found.basis}")
    for why, count in Counter(row["why_unknown"] for row in rows if row["why_unknown"]).items():
        print(f"{count} prices are unknown: {why}")


@app.command("roi")
def return_on_investment(
    customer: Customer,
    form: Format = "table",
    chart: Annotated[
        Path | None, typer.Option("--chart", help="an SVG file to draw the tornado into")
    ] = None,
) -> None:
    """What a customer's PoC would return: what its last run measured, what params.yaml assumes."""
    from turbo_vaed.costs import Ledger
    from turbo_vaed.poc import Poc
    from turbo_vaed.report import roi as words
    from turbo_vaed.report.roi_facts import cost_of_poc, read_roi
    from turbo_vaed.report.tornado import tornado_svg

    settings = Settings.from_environment()
    poc = Poc.load(settings.root, customer)
    with Ledger.open(settings.ledger_url) as ledger:
        cost = cost_of_poc(ledger, customer)
    found = read_roi(poc.work, cost=cost, assumptions=poc.params.roi)
    if chart is not None:
        chart.write_text(tornado_svg(found, f"{customer}: what the return hinges on"))
    if form == "json":
        print(json.dumps(words.document(found, customer)))
        return
    print(words.sentence(found))
    rows = words.table(found)
    for title, columns in (
        ("what it would return", ("figure", "low", "likely", "high", "unit", "kind")),
        ("where each figure is from", ("figure", "kind", "source")),
    ):
        show([{key: row[key] for key in columns} for row in rows], form, title)
    show(words.sensitivities(found), form, "value over the horizon, one input at a time")
