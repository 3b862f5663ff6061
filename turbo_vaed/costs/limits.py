"""Budgets that runs share: per customer and month, and over all customers per month."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from turbo_vaed.costs.ledger import Ledger
from turbo_vaed.costs.money import format_usd, total_usd
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.reservation import RunReservation, SpendingLimit
from turbo_vaed.errors import BudgetRefused, Unreachable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """USD; None where there is no such limit."""

    run_usd: Decimal
    customer_month_usd: Decimal | None
    total_month_usd: Decimal | None


def spending_limit(
    ledger: Ledger, limits: Limits, *, run: str, customer: str, at: datetime
) -> SpendingLimit:
    """The lowest of the limits that apply to a run in the month of `at`: of a month's limit, what
    other runs have neither spent nor reserved, which may be nothing or less. It is certain only for
    a run that has recorded a reservation (`RunReservation`).

    A charge belongs to the month that it starts in. What a run has spent in an earlier month is no
    part of this one's limits and is added: the limit is on the whole run.

    Raises:
        Unreachable: the ledger cannot be read.
    """
    own = f"budget.run_usd of {format_usd(limits.run_usd)}"
    found = [SpendingLimit(usd=limits.run_usd, by=own, is_own_budget=True)]
    if limits.customer_month_usd is None and limits.total_month_usd is None:
        return found[0]  # without reading the ledger
    month = Month.of(at)
    since, until = month.since, month.until
    in_month = total_usd(
        group.amount_usd for group in ledger.grouped(run=run, since=since, until=until)
    )
    earlier = ledger.total(run=run) - in_month
    reservations = [one for one in ledger.reservations(at=at) if one.run != run]
    for limit, key, who in (
        (limits.customer_month_usd, "budget.customer_month_usd", customer),
        (limits.total_month_usd, "budget.total_month_usd", None),
    ):
        if limit is not None:
            others = ledger.spent(customer=who, since=since, until=until)[0] - in_month
            open_ = [one for one in reservations if one.unspent_usd and who in (None, one.customer)]
            reserved = total_usd(one.unspent_usd for one in open_)
            by = (
                f"{key} of {format_usd(limit)} in {month}, of which other runs have spent "
                f"{format_usd(others)}"
            )
            if open_:
                names = ", ".join(one.run for one in open_)
                by += f" and reserved {format_usd(reserved)} more ({names})"
            usd = limit - others - reserved + earlier
            found.append(SpendingLimit(usd=usd, by=by, is_own_budget=False))
    return min(found, key=lambda one: one.usd)


def require_budget_left(limit: SpendingLimit, *, spent_usd: Decimal = Decimal(0)) -> None:
    """Refuse a run whose limits leave it nothing to spend.

    Args:
        spent_usd: by the run itself; 0 checks the limits alone.

    Raises:
        BudgetRefused: nothing is left.
    """
    if limit.usd > spent_usd:
        return
    own = f"; this run has spent {format_usd(spent_usd)}" if spent_usd else ""
    todo = "raise it where `turbo-vaed config show` finds it set"
    if not limit.is_own_budget:
        todo += ", or wait for the next month or until other runs release what they reserved"
    raise BudgetRefused(f"no budget is left: {limit.by}{own}; {todo}")


def reservation_of(ledger: Ledger, limits: Limits, *, run: str, customer: str) -> RunReservation:
    """A run's reservation, recorded in the ledger."""

    def write(upto_usd: Decimal) -> None:
        ledger.record_reservation(run, customer, upto_usd, at=datetime.now(UTC))

    def read_limit() -> SpendingLimit:
        return spending_limit(ledger, limits, run=run, customer=customer, at=datetime.now(UTC))

    return RunReservation(read_limit=read_limit, write=write)


def release_reservation(ledger: Ledger, run: str) -> None:
    """End a run's reservation; where the ledger does not answer, it expires within an hour."""
    try:
        ledger.release(run)
    except Unreachable as error:
        _log.warning("the reservation of %s stays for up to an hour: %s", run, error)
