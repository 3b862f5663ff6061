"""A statement of costs as tables for a terminal, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turbo_vaed.costs.customer_costs import (
    CustomerCost,
    Figure,
    Figures,
    RunCost,
    StageCostLine,
    Statement,
)
from turbo_vaed.costs.money import plain, total_usd
from turbo_vaed.report import formatting
from turbo_vaed.report.costs import wording
from turbo_vaed.report.costs.wording import SUMMARY_COLUMNS
from turbo_vaed.report.wording import stage_label

MOST_RUNS = 20
"""The dearest runs, in a terminal; CSV and JSON have all."""
LEAST_WIDTH = 80
"""Characters that the summary's nine columns need."""
CSV_COLUMNS = (
    "customer", "run", "stage", "market", "charges", "node_seconds", "spent_usd", "useful_usd",
    "wasted_usd", "spot_saving_usd", "first_at", "last_at", "note",
)  # fmt: skip


def summary_cells(customer_cost: CustomerCost) -> tuple[str, ...]:
    """A line of the summary, without the name; the columns are `SUMMARY_COLUMNS`."""
    figures = customer_cost.figures
    return (
        f"{customer_cost.runs:,}",
        *(
            wording.usd(amount)
            for amount in (
                figures.spent_usd,
                figures.budget,
                figures.left,
                figures.saving,
                figures.wasted_usd,
                figures.per_step,
                figures.per_db,
            )
        ),
    )


def show_tables(statement: Statement, console: Console) -> None:
    """The sentence, the summary, the detail by run and stage, and the notes.

    In a narrow window cells are folded, below `LEAST_WIDTH` lines are broken: no digit is left out.
    """
    width = max(console.width, LEAST_WIDTH)
    console.print(Text(wording.sentence(statement)))
    headings = [name.replace(" ", "\n", 1) for name in SUMMARY_COLUMNS]
    summary = _table("customer", headings)
    for customer_cost in statement.customers:
        summary.add_row(Text(customer_cost.name), *summary_cells(customer_cost))
    if len(statement.customers) > 1:
        summary.add_section()
        summary.add_row("all", *summary_cells(statement.total))
    console.print(summary, width=width, crop=False)
    listed = _dearest(statement.runs)
    if listed:
        console.print(_detail(listed, statement), width=width, crop=False)
    if len(listed) < len(statement.runs):
        rest = total_usd(run.figures.spent_usd for run in statement.runs if run not in listed)
        left_out = len(statement.runs) - len(listed)
        console.print(Text(wording.runs_left_out(left_out, rest)))
    for note in wording.notes(statement):
        console.print(Text(note))


def _dearest(runs: Sequence[RunCost]) -> list[RunCost]:
    """At most `MOST_RUNS`, in their own order."""
    dearest = sorted(runs, key=lambda run: run.figures.spent_usd, reverse=True)[:MOST_RUNS]
    names = {(run.customer, run.run) for run in dearest}
    return [run for run in runs if (run.customer, run.run) in names]


def _detail(runs: Sequence[RunCost], statement: Statement) -> Table:
    table = _table("run and stage", ("market", "time", "spent", "wasted", "saved\nby spot"))
    for run in runs:
        title = f"{_titled(run, statement)}, {run.first_at:%Y-%m-%d}"
        table.add_row(Text(title), "", *detail_cells(run.figures, is_spot=has_spot(run)))
        for line in run.lines:
            cells = detail_cells(line, is_spot=line.market == "spot")
            table.add_row(Text(f"  {stage_label(line.stage)}"), line.market, *cells)
        table.add_section()
    return table


def detail_cells(row: StageCostLine | Figures, *, is_spot: bool) -> tuple[str, str, str, str]:
    """Time, spent, wasted, and the saving where it ran on spot."""
    return (
        formatting.seconds(float(row.node_seconds)),
        wording.usd(row.spent_usd),
        wording.usd(row.wasted_usd),
        wording.usd(row.saving) if is_spot else "",
    )


def has_spot(run: RunCost) -> bool:
    """Whether some of it ran on spot."""
    return any(line.market == "spot" for line in run.lines)


def _table(first: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first, overflow="fold", min_width=4)
    for name in columns:
        table.add_column(name, justify="right", overflow="fold", min_width=4)
    return table


def _titled(run: RunCost, statement: Statement) -> str:
    own = run.run.startswith(f"{run.customer}-")
    return run.run if statement.customer or own else f"{run.customer}: {run.run}"


def csv_text(statement: Statement) -> str:
    """The detail, RFC 4180: a header, plain decimals, an empty cell for what is unknown.

    A text that a spreadsheet would take for a formula begins with an apostrophe instead.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    for run in statement.runs:
        for line in run.lines:
            saving = line.saving.usd
            row: tuple[str | int, ...] = (
                _harmless(run.customer),
                _harmless(run.run),
                _harmless(line.stage),
                line.market,
                line.charges,
                plain(line.node_seconds),
                plain(line.spent_usd),
                plain(line.useful_usd),
                plain(line.wasted_usd),
                "" if saving is None else plain(saving),
                _iso(line.first_at),
                _iso(line.last_at),
                _harmless(line.saving.note),
            )
            writer.writerow(row)
    return out.getvalue()


def _harmless(text: str) -> str:
    """A text that a spreadsheet would compute, some after leading spaces, with an apostrophe."""
    return (
        f"'{text}" if text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
    )


def json_text(statement: Statement) -> str:
    """One document; money, node-seconds and dB as text, null for what is unknown."""
    return json.dumps(json_document(statement), indent=1, ensure_ascii=False)


def json_document(statement: Statement) -> dict[str, Any]:
    """`sentence`, `period`, `customer`, `summary`, `total`, `runs`, `months`, `notes`."""
    return {
        "sentence": wording.sentence(statement),
        "period": None if statement.period is None else str(statement.period),
        "customer": statement.customer,
        "summary": [_customer_cost(customer_cost) for customer_cost in statement.customers],
        "total": _customer_cost(statement.total, name=False),
        "runs": [_run(run) for run in statement.runs],
        "months": [
            {
                "month": str(one.month),
                "spent_usd": plain(one.spent_usd),
                "wasted_usd": plain(one.wasted_usd),
            }
            for one in statement.months
        ],
        "notes": wording.notes(statement),
    }


def _customer_cost(customer_cost: CustomerCost, *, name: bool = True) -> dict[str, Any]:
    named = {"customer": customer_cost.name} if name else {}
    return {**named, "runs": customer_cost.runs, **_figures(customer_cost.figures)}


def _run(run: RunCost) -> dict[str, Any]:
    gained = None if run.distilled is None else run.distilled.db_gained
    return {
        "customer": run.customer,
        "run": run.run,
        "first_at": _iso(run.first_at),
        "last_at": _iso(run.last_at),
        "outside_period_usd": plain(run.outside_usd),
        "kept_steps": None if run.distilled is None else run.distilled.steps_kept,
        "db_gained": None if gained is None else plain(gained),
        **_figures(run.figures),
        "stages": [
            {
                "stage": line.stage,
                "market": line.market,
                "charges": line.charges,
                "node_seconds": plain(line.node_seconds),
                "spent_usd": plain(line.spent_usd),
                "useful_usd": plain(line.useful_usd),
                "wasted_usd": plain(line.wasted_usd),
                "spot_saving_usd": _plain(line.saving),
                "first_at": _iso(line.first_at),
                "last_at": _iso(line.last_at),
            }
            for line in run.lines
        ],
    }


def _figures(figures: Figures) -> dict[str, Any]:
    named = {
        "budget_usd": figures.budget,
        "left_usd": figures.left,
        "spot_saving_usd": figures.saving,
        "usd_per_kept_step": figures.per_step,
        "usd_per_db": figures.per_db,
    }
    return {
        "charges": figures.charges,
        "node_seconds": plain(figures.node_seconds),
        "spent_usd": plain(figures.spent_usd),
        "useful_usd": plain(figures.useful_usd),
        "wasted_usd": plain(figures.wasted_usd),
        **{name: _plain(figure) for name, figure in named.items()},
        "unknown": {name: of.note for name, of in named.items() if of.usd is None},
    }


def _plain(figure: Figure) -> str | None:
    known: Decimal | None = figure.usd
    return None if known is None else plain(known)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
