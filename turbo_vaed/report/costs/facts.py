"""params.yaml, the work folders and the ledger -> a statement of costs, with what is known besides.

Nothing here ends a report: what cannot be read is unknown, and the reason is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config import load
from turbo_vaed.config.load import ConfigFiles
from turbo_vaed.config.money import BudgetParams
from turbo_vaed.config.schema import CUSTOMER_NAME
from turbo_vaed.costs.customer_costs import Customer, Distillation, MonthSpent, Statement
from turbo_vaed.costs.ledger import ChargeGroup, Ledger
from turbo_vaed.costs.months import Month, months_between
from turbo_vaed.costs.statement import (
    DISTILL,
    MonthLimits,
    OnDemandPrice,
    covering,
    month_spent,
    statement,
)
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.gate import VERDICT_NAME, Verdict, read_verdict
from turbo_vaed.runtime.files import read_json


@dataclass(frozen=True, kw_only=True)
class History:
    """The last distillation, from `distill/history.json`."""

    first_at: datetime | None
    """When its first step was done; None in a history without timestamps."""
    last_at: datetime | None
    steps_done: int
    best_psnr: float | None
    """dB, on the validation clips."""
    db_gained: Decimal | None
    """From the first validation to the best one; None with fewer than two."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a customer besides its charges; a text is the reason why it is not."""

    name: str
    use_case: str | None
    """None where the configuration is not valid or has none."""
    is_listed: bool
    """In params.yaml; one that was removed may still have charges."""
    budget: BudgetParams | str
    history: History | str
    retention: float | str
    """The package's share of the teacher's PSNR, of the last verdict."""
    verdict: Verdict | str


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A statement, and what is known of its customers, in the same order."""

    statement: Statement
    known: tuple[Known, ...]


def gather(
    root: Path,
    ledger: Ledger,
    *,
    on_demand_usd_per_hour: OnDemandPrice,
    customer: str | None = None,
    period: Month | None = None,
) -> Gathered:
    """The statement of a customer, or of all in params.yaml and in the ledger.

    Raises:
        UserError: params.yaml cannot be read; a customer that is in neither of them.
        Unreachable, CorruptFile: of the ledger.
    """
    files = load.read(root)
    listed = [name for name in files.customers if isinstance(name, str)]
    charged = ledger.customers()
    if customer is None:
        names = listed + [name for name in charged if name not in listed]
    elif customer in listed or customer in charged:
        names = [customer]
    else:
        raise UserError(
            f"unknown customer {customer!r}, with no charges either; in params.yaml: "
            f"{', '.join(sorted(listed)) or 'none'}"
        )
    known = tuple(_known(root, files, name, is_listed=name in listed) for name in names)
    inside, outside, months = _charges(ledger, customer, period)
    return Gathered(
        known=known,
        statement=statement(
            inside,
            outside=outside,
            months=months,
            customers=[
                Customer(
                    name=one.name,
                    run_budget_usd=one.budget
                    if isinstance(one.budget, str)
                    else one.budget.run_usd,
                    distilled=_distilled(one.name, one.history, ledger),
                )
                for one in known
            ],
            on_demand_usd_per_hour=on_demand_usd_per_hour,
            customer=customer,
            period=period,
            limits=_month_limits(known),
        ),
    )


def _month_limits(known: Sequence[Known]) -> MonthLimits:
    """Of all together the widest one that a customer has: until there one of them may spend."""
    budgets = {one.name: one.budget for one in known if not isinstance(one.budget, str)}
    totals = [of.total_month_usd for of in budgets.values() if of.total_month_usd is not None]
    return MonthLimits(
        customers={
            name: of.customer_month_usd
            for name, of in budgets.items()
            if of.customer_month_usd is not None
        },
        total=max(totals) if totals and len(totals) == len(budgets) else None,
    )


def _charges(
    ledger: Ledger, customer: str | None, period: Month | None
) -> tuple[list[ChargeGroup], list[ChargeGroup], list[MonthSpent]]:
    """Those of the period, those of its runs outside of it, and what each month up to it came to.

    Of other months no more is read than that: a ledger's past makes a report slow.
    """
    inside: list[ChargeGroup] = []
    outside: list[ChargeGroup] = []
    months: list[MonthSpent] = []
    span = ledger.span(customer=customer)
    for month in () if span is None else months_between(*span):
        since, until = month.since, month.until
        if period is None or month == period:
            found = ledger.grouped(customer=customer, since=since, until=until)
            inside += found
            months.append(month_spent(month, found))
        elif month < period:
            usd, wasted = ledger.spent(customer=customer, since=since, until=until)
            months.append(MonthSpent(month=month, spent_usd=usd, wasted_usd=wasted))
    if inside and period is not None and span is not None:
        own = period.since, period.until
        if span[0] < period.since:
            outside += ledger.grouped(customer=customer, until=period.since, of_runs_in=own)
        if period.until <= span[1]:
            outside += ledger.grouped(customer=customer, since=period.until, of_runs_in=own)
    return inside, outside, months


def _known(root: Path, files: ConfigFiles, name: str, *, is_listed: bool) -> Known:
    if CUSTOMER_NAME.fullmatch(name) is None:  # a ledger takes any name, a path must not
        why = "its name is no valid customer name, so it has no work folder"
        return Known(
            name=name, use_case=None, is_listed=is_listed, budget=_NOT_LISTED,
            history=why, retention=why, verdict=why,
        )  # fmt: skip
    work = root / "work" / name
    use_case, budget = _from_params(files, name) if is_listed else (None, _NOT_LISTED)
    verdict = _verdict(work / "gate" / VERDICT_NAME)
    return Known(
        name=name,
        use_case=use_case,
        is_listed=is_listed,
        budget=budget,
        history=_history(work / "distill" / "history.json"),
        retention=verdict if isinstance(verdict, str) else _retention(verdict),
        verdict=verdict,
    )


_NOT_LISTED = "it is no longer in params.yaml"


def _from_params(files: ConfigFiles, name: str) -> tuple[str | None, BudgetParams | str]:
    try:
        found = load.resolve(files, name).params()
    except UserError as error:
        return None, f"its params are not valid ({' '.join(str(error).split())})"
    return found.use_case, found.budget


def _verdict(path: Path) -> Verdict | str:
    try:
        return read_verdict(path)
    except FileNotFoundError:
        return "no gate/verdict.json in the work folder"
    except (CorruptFile, OSError) as error:
        return f"its verdict cannot be read ({type(error).__name__})"


def _retention(verdict: Verdict) -> float | str:
    measured = next(c.measured for c in verdict.checks if c.name == "psnr_retention")
    return "not measured" if measured is None or not math.isfinite(measured) else measured


def _history(path: Path) -> History | str:
    try:
        return _parsed(read_json(path))
    except FileNotFoundError:
        return "no distill/history.json in the work folder"
    except (CorruptFile, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        return f"its distill/history.json cannot be read ({type(error).__name__}: {error})"


def _parsed(document: Mapping[str, Any]) -> History:
    steps: Sequence[Mapping[str, Any]] = document["steps"]
    times = [float(row["at"]) for row in steps if "at" in row]
    all_timed = bool(times) and len(times) == len(steps)
    validations = [float(row["val_psnr"]) for row in steps if row.get("val_psnr") is not None]
    finite = [value for value in validations if math.isfinite(value)]
    # Decimal of the shortest text: a float's own digits, and no more of them than it has.
    gained = Decimal(repr(max(finite))) - Decimal(repr(finite[0])) if len(finite) > 1 else None
    return History(
        first_at=datetime.fromtimestamp(times[0], UTC) if all_timed else None,
        last_at=datetime.fromtimestamp(times[-1], UTC) if all_timed else None,
        steps_done=int(document["steps_done"]),
        best_psnr=max(finite, default=None),
        db_gained=gained,
    )


def _distilled(name: str, history: History | str, ledger: Ledger) -> Distillation | str:
    """The history with the run that it belongs to: the one that was charged while it arose."""
    if isinstance(history, str):
        return history
    if history.first_at is None or history.last_at is None:
        return "its distill/history.json has no timestamps, so its run is unknown"
    runs = ledger.runs_of_stage(name, DISTILL)
    run = covering(runs, history.first_at, history.last_at)
    if run is None:
        return (
            "no single run was charged for the distillation from "
            f"{history.first_at:%Y-%m-%d %H:%M} to "
            f"{history.last_at:%Y-%m-%d %H:%M} UTC in its distill/history.json"
        )
    return Distillation(run=run, steps_kept=history.steps_done, db_gained=history.db_gained)
