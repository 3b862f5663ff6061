"""Budgets that runs share: per customer and month, and over all customers per month."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from turbo_vaed.costs.ledger import Ledger
from turbo_vaed.costs.money import format_usd, total_usd
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.reservation import Allowance
from turbo_vaed.errors import BudgetRefused


@dataclass(frozen=True, kw_only=True)
class Limits:
    """USD; None where there is no such limit."""

    run_usd: Decimal
    customer_month_usd: Decimal | None
    total_month_usd: Decimal | None


def allowance(
    ledger: Ledger, limits: Limits, *, run: str, customer: str, at: datetime
) -> Allowance:
    """The least that the limits leave to a run in the month of `at`; nothing or less where other
    runs have used up a month's, or keep the rest of it back. It is sure for a run that has told the
    ledger what it may come to, and for no other (`Share`).

    A charge belongs to the month that it starts in. What a run has spent in an earlier month is no
    part of this one's limits and is added: the allowance is of the whole run.

    Raises:
        Unreachable: the ledger cannot be read.
    """
    own = f"budget.run_usd of {format_usd(limits.run_usd)}"
    found = [Allowance(usd=limits.run_usd, by=own, is_own=True)]
    if limits.customer_month_usd is None and limits.total_month_usd is None:
        return found[0]  # asks nobody
    month = Month.of(at)
    since, until = month.since, month.until
    in_month = total_usd(
        group.amount_usd for group in ledger.grouped(run=run, since=since, until=until)
    )
    earlier = ledger.total(run=run) - in_month
    holds = [hold for hold in ledger.holds(at=at) if hold.run != run]
    for limit, key, who in (
        (limits.customer_month_usd, "budget.customer_month_usd", customer),
        (limits.total_month_usd, "budget.total_month_usd", None),
    ):
        if limit is not None:
            others = ledger.spent(customer=who, since=since, until=until)[0] - in_month
            keeping = [hold for hold in holds if hold.usd and who in (None, hold.customer)]
            kept = total_usd(hold.usd for hold in keeping)
            told = (
                f"{key} of {format_usd(limit)} in {month}, of which other runs have spent "
                f"{format_usd(others)}"
            )
            if keeping:
                names = ", ".join(hold.run for hold in keeping)
                told += f", and {names} keep back {format_usd(kept)} for what they still have to do"
            usd = limit - others - kept + earlier
            found.append(Allowance(usd=usd, by=told, is_own=False))
    return min(found, key=lambda one: one.usd)


def require_allowance(found: Allowance, *, spent_usd: Decimal = Decimal(0)) -> None:
    """Refuse a run to which its limits leave nothing.

    Args:
        spent_usd: by the run itself; 0 asks of the limits alone.

    Raises:
        BudgetRefused: they leave nothing.
    """
    if found.usd > spent_usd:
        return
    own = f", and this run has spent {format_usd(spent_usd)}" if spent_usd else ""
    todo = "raise it in params.yaml"
    if not found.is_own:
        todo += ", or wait for the next month, or for the end of runs that keep some of it back"
    raise BudgetRefused(f"nothing may be spent: {found.by}{own}; {todo}")
