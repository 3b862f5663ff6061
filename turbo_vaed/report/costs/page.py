"""A statement of costs as one self-contained HTML page that prints on A4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.customer_costs import Figures, RunCost, StageCostLine, Statement
from turbo_vaed.costs.money import format_usd, total_usd
from turbo_vaed.report.charts import Bar, Drawing, bar_chart
from turbo_vaed.report.costs import wording
from turbo_vaed.report.costs.formats import (
    detail_cells,
    has_spot,
    summary_cells,
)
from turbo_vaed.report.costs.wording import SUMMARY_COLUMNS
from turbo_vaed.report.templating import rendered
from turbo_vaed.report.wording import stage_label

MOST_MONTHS = 12
MOST_BARS = 12
"""Of customers, runs or stages; the rest share one bar."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A bar chart with its title."""

    title: str
    svg: Drawing


def costs_page(statement: Statement) -> str:
    """The page as text; every name in it is escaped, and it loads and runs nothing."""
    return rendered(
        "costs.html.j2",
        "style.css",
        "charts.css",
        "costs.css",
        **head(statement, "Costs"),
        columns=[name.capitalize().replace("db", "dB") for name in SUMMARY_COLUMNS],
        customers=[(one.name, summary_cells(one)) for one in statement.customers],
        total=summary_cells(statement.total),
        charts=charts(statement),
        runs=[_run(run, statement) for run in statement.runs],
        notes=wording.notes(statement),
    )


def head(statement: Statement, kind: str) -> dict[str, Any]:
    """The head of every cost page."""
    whom = "All customers" if statement.customer is None else f"Customer {statement.customer}"
    when = "All time" if statement.period is None else statement.period.label
    return {
        "kind": kind,
        "title": f"{kind} of {wording.about(statement)}, {wording.period(statement)}",
        "dates": _dates(statement),
        "badges": [whom, when],
        "sentence": wording.sentence(statement),
        "meter": _meter(statement.total.figures),
        "unknown": wording.UNKNOWN,
    }  # fmt: skip


def _dates(statement: Statement) -> str:
    if not statement.runs:
        return wording.period(statement)
    first = min(run.first_at for run in statement.runs)
    last = max(run.last_at for run in statement.runs)
    return f"charges from {first:%d %B %Y} to {last:%d %B %Y}"


def _meter(figures: Figures) -> dict[str, Any] | None:
    """The bar under the sentence; None where the budget is not known."""
    budget, left = figures.budget.usd, figures.left.usd
    if budget is None or left is None or budget <= 0:
        return None
    used = min(1.0, max(0.0, float(1 - left / budget)))
    return {
        "spent": f"{format_usd(figures.spent_usd)} spent, "
        f"{format_usd(figures.wasted_usd)} of it wasted",
        "limit": f"{format_usd(left)} left of {format_usd(budget)}"
        if left >= 0
        else f"{format_usd(abs(left))} over {format_usd(budget)}",
        "some": used > 0,
        "width": f"{used * 100:.2f}",
        "tone": "warn" if left < 0 else "",
    }


def charts(statement: Statement) -> list[Chart]:
    """Spending by month and by customer; of one customer, by month and by stage."""
    months = statement.months[-MOST_MONTHS:]
    by_month = bar_chart(
        title="Spent by month",
        description=f"{len(months)} months up to the end of the period.",
        bars=[
            bar(f"{one.month.since:%b %Y}", one.spent_usd, one.wasted_usd) for one in months
        ],
    )  # fmt: skip
    if statement.customer is None:
        title = f"Spent by customer, {wording.period(statement)}"
        amounts = [
            (one.name, one.figures.spent_usd, one.figures.wasted_usd)
            for one in statement.customers
            if one.runs
        ]
    else:
        title = f"Spent by stage, {wording.period(statement)}"
        amounts = _by_stage([line for run in statement.runs for line in run.lines])
    by_other = bar_chart(title=title, description=f"{len(amounts)} bars.", bars=_largest(amounts))
    drawn = (("Spent by month", by_month), (title, by_other))
    return [Chart(title=name, svg=svg) for name, svg in drawn if svg is not None]


def bar(label: str, usd: Decimal, wasted: Decimal) -> Bar:
    """A bar of dollars; floats are good enough for drawing."""
    return Bar(label=label, value=float(usd), bad=float(wasted), text=format_usd(usd))


def _by_stage(lines: Sequence[StageCostLine]) -> list[tuple[str, Decimal, Decimal]]:
    def of(stage: str, amount: Callable[[StageCostLine], Decimal]) -> Decimal:
        return total_usd(amount(line) for line in lines if line.stage == stage)

    return [
        (
            stage_label(stage),
            of(stage, lambda line: line.spent_usd),
            of(stage, lambda line: line.wasted_usd),
        )
        for stage in dict.fromkeys(line.stage for line in lines)
    ]


def _largest(amounts: Sequence[tuple[str, Decimal, Decimal]]) -> list[Bar]:
    """The largest first; of too many, the rest as one."""
    ordered = sorted(amounts, key=lambda one: -one[1])
    if len(ordered) <= MOST_BARS:
        return [bar(*one) for one in ordered]
    dearest, rest = ordered[: MOST_BARS - 1], ordered[MOST_BARS - 1 :]
    name = f"{len(rest)} others"
    return [
        *(bar(*one) for one in dearest),
        bar(name, total_usd(one[1] for one in rest), total_usd(one[2] for one in rest)),
    ]


def _run(run: RunCost, statement: Statement) -> dict[str, Any]:
    first, last = f"{run.first_at:%d %b %Y %H:%M}", f"{run.last_at:%d %b %Y %H:%M}"
    return {
        "title": run.run if statement.customer else f"{run.customer}: {run.run}",
        "dates": f"{first} to {last}",
        "cells": detail_cells(run.figures, is_spot=has_spot(run)),
        "lines": [
            (
                stage_label(line.stage),
                line.market,
                *detail_cells(line, is_spot=line.market == "spot"),
            )
            for line in run.lines
        ],
    }
