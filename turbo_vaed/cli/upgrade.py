"""`turbo-vaed upgrade …`: what a new version or edited params will run again, and its cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbo_vaed.cli import completion
from turbo_vaed.cli.tables import Format, show
from turbo_vaed.settings import Settings

if TYPE_CHECKING:
    from flows.upgrade import CustomerPlan, UpgradePlan

app = typer.Typer(no_args_is_help=True, help="What a new version will run again.")


@app.command("plan")
def show_plan(
    customers: Annotated[
        list[str] | None,
        typer.Argument(
            help="names of customers in params.yaml  [default: all]",
            autocompletion=completion.customers,
        ),
    ] = None,
    form: Format = "table",
) -> None:
    """Which stages of which customers run again with this version, why, and what that costs.

    It compares what this version and these params make of each customer with what DVC recorded of
    the last run: values, stage versions, digests, commands and dependencies. New or changed videos
    are no part of it. Nothing is written, and the ledger is not migrated.

    Exit code 2: this version does not take the params of some customers.
    """
    from flows.upgrade import plan

    found = plan(Settings.from_environment(), customers or ())
    if form == "json":
        print(json.dumps(_document(found), default=str))
    else:
        show(
            [row for one in found.customers for row in _rows(one)],
            form,
            "what runs again",
        )
        print(_summary(found))
        print(f"{str(found.ledger)[:1].upper()}{str(found.ledger)[1:]}.")
    if any(one.error for one in found.customers):
        raise typer.Exit(2)


def _rows(one: CustomerPlan) -> list[dict[str, Any]]:
    """A row per stage that runs again, the cost in the first one; none where nothing does."""
    if one.error or (one.note and not one.again):
        return [_row(one.customer, None, one.error or one.note, None)]
    rows = [
        _row(one.customer, stage, "\n".join(map(str, why)), None)
        for stage, why in one.again.items()
    ]
    if one.downstream:
        where = "where what they read is different then"
        rows.append(_row(one.customer, ", ".join(one.downstream), where, None))
    if rows:
        rows[0]["cost"] = "; ".join(filter(None, (str(one.cost or ""), one.note)))
    return rows


def _row(customer: str, stages: str | None, why: str, cost: str | None) -> dict[str, Any]:
    return {"customer": customer, "runs again": stages, "why": why, "cost": cost}


def _summary(found: UpgradePlan) -> str:
    from turbo_vaed.costs import format_usd
    from turbo_vaed.planning.upgrade import total_cost

    again = [one for one in found.customers if one.again]
    if not again:
        return f"No stage of {len(found.customers)} customers runs again."
    known = [one.cost for one in again if one.cost is not None]
    low, likely, high = map(format_usd, total_cost(known))
    which = f"{len(again)} of {len(found.customers)} customers"
    text = f"{which} run again, for {likely} ({low} to {high})"
    missing = len(again) - len(known)
    return f"{text}; the cost of {missing} of them is not known." if missing else f"{text}."


def _document(found: UpgradePlan) -> dict[str, Any]:
    from turbo_vaed.planning.upgrade import total_cost

    costs = [one.cost for one in found.customers if one.cost is not None]
    low, likely, high = total_cost(costs)
    return {
        "customers": [
            {
                "customer": one.customer,
                "again": {
                    stage: [{"key": c.key, "recorded": c.recorded, "now": c.now} for c in why]
                    for stage, why in one.again.items()
                },
                "downstream": one.downstream,
                "cost": vars(one.cost) if one.cost else None,
                "note": one.note,
                "error": one.error,
            }
            for one in found.customers
        ],
        "total": {
            "customers": sum(bool(one.again) for one in found.customers),
            "low_usd": low,
            "likely_usd": likely,
            "high_usd": high,
            "customers_of_unknown_cost": sum(
                bool(one.again) and one.cost is None for one in found.customers
            ),
        },
        "ledger": {"revision": found.ledger.found, "pending": found.ledger.pending},
    }
