"""`turbo-vaed cost …`: what runs cost, will cost and would cost."""

from __future__ import annotations

import json
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
