"""How a customer stands: the last run, the one that goes on, money, what is due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from turbo_vaed.config.money import BudgetParams
from turbo_vaed.costs.open_runs import OpenRun
from turbo_vaed.report.fleet.record import Champion, LastRun, Skipped

_OUTCOMES = {"passes": "Passed", "fails": "GateFailed", "inconclusive": "Inconclusive"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A customer's schedule."""

    next_at: datetime | None
    """None while it is paused."""
    is_paused: bool = False
    missed_at: datetime | None = None
    """A run was due then, nothing came of it, and it would be skipped by now."""


@dataclass(frozen=True, kw_only=True)
class Spend:
    """Spending, and the limit that it is up against."""

    usd: Decimal
    limit_usd: Decimal
    is_month: bool
    """This month's, of all the customer's runs; otherwise that of the last run."""

    @property
    def share(self) -> Decimal:
        """Of the limit; above 1 where it is passed."""
        return self.usd / self.limit_usd


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a customer now."""

    customer: str
    now: datetime
    is_listed: bool = True
    """In params.yaml; one that was removed may still have pages."""
    problem: str = ""
    """Why its params are not valid."""
    use_case: str = ""
    budget: BudgetParams | None = None
    """None where its params are not valid, or it was removed."""
    last: LastRun | None = None
    skipped: Skipped | None = None
    champion: Champion | None = None
    """None where the registry has not been asked."""
    open_run: OpenRun | None = None
    """The run that goes on, or died; None where the last one has ended."""
    open_usd: Decimal | None = None
    """What that run has cost in this month."""
    month_usd: Decimal | None = None
    """None where the ledger does not answer."""
    plan: Plan | None = None
    """None where it has no schedule."""

    @property
    def outcome(self) -> str:
        """What stands: where nothing had changed, what the unchanged package's verdict says.
        `Never` where the customer has not run."""
        if self.last is None:
            return "Never"
        if self.last.outcome == "Unchanged":
            return _OUTCOMES.get(self.last.result, "Unchanged")
        return self.last.outcome

    @property
    def ended_at(self) -> datetime | None:
        """When the last run ended; None where there was none."""
        return None if self.last is None else self.last.ended

    @property
    def seen_at(self) -> datetime | None:
        """When a run of the customer last began, ended or was skipped."""
        skipped, going_on = self.skipped, self.open_run
        found = [
            self.ended_at,
            None if skipped is None else skipped.at,
            None if going_on is None else going_on.began_at,
        ]
        return max((at for at in found if at is not None), default=None)

    @property
    def heartbeat_age(self) -> timedelta | None:
        """Since the open run was last seen, by the database's clock."""
        run = self.open_run
        return None if run is None else run.now - run.seen_at

    @property
    def spends(self) -> tuple[Spend, ...]:
        """Against the customer's limit for a month, where it has one, and against the run's."""
        found = []
        limit = None if self.budget is None else self.budget.customer_month_usd
        if limit is not None and self.month_usd is not None:
            found.append(Spend(usd=self.month_usd, limit_usd=limit, is_month=True))
        run = self._run_spend()
        return (*found, run) if run is not None else tuple(found)

    def _run_spend(self) -> Spend | None:
        if self.open_run is not None and self.open_usd is not None and self.budget is not None:
            return Spend(usd=self.open_usd, limit_usd=self.budget.run_usd, is_month=False)
        last = self.last
        if last is None or last.usd is None or last.budget_usd is None:
            return None
        return Spend(usd=last.usd, limit_usd=last.budget_usd, is_month=False)
