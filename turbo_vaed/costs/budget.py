"""The budget: pure functions that say whether a run may go on.

A run has one part that can be cut short (distillation) and a part that cannot (checkpoint,
evaluate, export, gate, report), for which the reserve is set aside. So:

- While distillation runs, `decide` is called before every step and returns `stop` as soon as
  one more step would eat into the reserve. A run whose reserve fits therefore never passes its
  budget.
- A budget that is above zero but does not even hold the reserve stops distillation before its
  first step; the student is then what it started as, and the rest still runs, so that the
  customer gets a report for the money and the report shows by how much the floor of a run is
  above the budget. What is spent beyond it is that floor and never a step of training.
- Work before it that can only be done as a whole (encoding) is refused, by `Spending.require`, as
  soon as the rest of it does not fit.
- Zero or less, and an unknown price, are refused before anything is spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from turbo_vaed.costs.money import AMOUNT_QUANTUM, format_usd, per_second
from turbo_vaed.costs.reservation import RunReservation, SpendingLimit
from turbo_vaed.errors import BudgetRefused, UserError

Action = Literal["continue", "warn", "stop"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may cost.

    Raises:
        UserError: `run_usd` is not above zero, the share is not in 0..1, the reserve is negative.
    """

    run_usd: Decimal
    warn_share: Decimal
    """Of `run_usd`: warn from here on."""
    reserve_usd: Decimal
    """Reserved for what must run after distillation."""

    def __post_init__(self) -> None:
        for name in ("run_usd", "warn_share", "reserve_usd"):
            value = getattr(self, name)
            if not isinstance(value, Decimal) or not value.is_finite():
                raise UserError(f"budget: {name} is {value!r}; expected a finite Decimal")
        if self.run_usd <= 0:
            raise UserError(f"budget: run_usd is {self.run_usd}; expected more than 0")
        if not 0 <= self.warn_share <= 1:
            raise UserError(f"budget: warn_share is {self.warn_share}; expected 0 to 1")
        if self.reserve_usd < 0:
            raise UserError(f"budget: reserve_usd is {self.reserve_usd}; expected at least 0")

    @classmethod
    def plan(
        cls,
        *,
        run_usd: Decimal,
        warn_share: float,
        reserve_seconds: float,
        usd_per_hour: Decimal,
        reserve_usd: Decimal = Decimal(0),
    ) -> Budget:
        """The configured budget, its reserve in seconds priced at what the nodes cost.

        Args:
            reserve_usd: reserved on top, for what is not charged by time.
        """
        return cls(
            run_usd=run_usd,
            warn_share=Decimal(str(warn_share)),
            reserve_usd=Decimal(str(reserve_seconds)) * per_second(usd_per_hour) + reserve_usd,
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether to take the next step, and why, in words for a log and a report."""

    action: Action
    reason: str
    spent_usd: Decimal
    left_usd: Decimal
    """For further steps, the reserve already taken off; negative when that is eaten into."""

    @property
    def stop(self) -> bool:
        return self.action == "stop"


def decide(
    budget: Budget,
    *,
    spent_usd: Decimal,
    rate_usd_per_second: Decimal,
    next_step_seconds: float,
) -> Decision:
    """May the next step be taken?

    Args:
        budget: of the run.
        spent_usd: by the whole run up to now. A figure from the ledger alone is late by up to a
            slice of the meter: add `Meter.unwritten_usd()`, or the meter's interval to
            `next_step_seconds`.
        rate_usd_per_second: of all nodes together.
        next_step_seconds: the most that the step can take, what follows it before the next
            question (a validation, a checkpoint) included.

    Returns:
        `stop` when the step could eat into the reserve; `warn` when it passes the warning
        share; else `continue`. As long as no step takes longer or costs more than these
        arguments, spend + reserve never passes the budget.

    Raises:
        ValueError: a negative or non-finite duration or rate.
    """
    if not math.isfinite(next_step_seconds) or next_step_seconds < 0:
        raise ValueError(f"next_step_seconds is {next_step_seconds}; expected 0 or more, finite")
    if not rate_usd_per_second.is_finite() or rate_usd_per_second < 0:
        raise ValueError(f"rate_usd_per_second is {rate_usd_per_second}; expected 0 or more")
    step_usd = rate_usd_per_second * Decimal(next_step_seconds)
    left_usd = budget.run_usd - budget.reserve_usd - spent_usd
    warn_usd = budget.run_usd * budget.warn_share
    of = f"{format_usd(spent_usd)} of {format_usd(budget.run_usd)} spent"
    if left_usd < 0 or step_usd > left_usd:
        action: Action = "stop"
        reason = (
            f"{of}; a further step of up to {format_usd(step_usd)} would eat into the "
            f"{format_usd(budget.reserve_usd)} reserved for the stages after it"
        )
    elif spent_usd + step_usd >= warn_usd:
        action = "warn"
        reason = f"{of}; the warning stands at {format_usd(warn_usd)}"
    else:
        action, reason = "continue", of
    return Decision(action=action, reason=reason, spent_usd=spent_usd, left_usd=left_usd)


def check_start(budget: Budget, *, spent_usd: Decimal, usd_per_hour: Decimal | None) -> Decision:
    """Asked once before a run spends anything: is its price known, does its reserve fit?

    Returns:
        `stop` when nothing is left for distillation: the run goes on with the student as it
        starts, and the reason belongs in the log and the report.

    Raises:
        BudgetRefused: the price is unknown.
    """
    if usd_per_hour is None:
        raise BudgetRefused(
            "the price of this run's machine is unknown, so its budget cannot be kept; set "
            "prices.local_usd_per_hour in finance.yaml to USD per hour (0 is a price)"
        )
    left_usd = budget.run_usd - budget.reserve_usd - spent_usd
    if left_usd > 0:
        decision = decide(
            budget,
            spent_usd=spent_usd,
            rate_usd_per_second=per_second(usd_per_hour),
            next_step_seconds=0,
        )
        return decision
    return Decision(
        action="stop",
        reason=(
            f"{format_usd(spent_usd)} of {format_usd(budget.run_usd)} spent; the "
            f"{format_usd(budget.reserve_usd)} reserved for evaluate, export, gate and report "
            "leave nothing for distillation: the rest runs with the student as it starts, and "
            f"may pass the budget by up to {format_usd(-left_usd)}"
        ),
        spent_usd=spent_usd,
        left_usd=left_usd,
    )


@dataclass(frozen=True, kw_only=True)
class Spending:
    """A run as its budget sees it: what it may spend, what it has spent, and how fast."""

    budget: Budget
    usd_per_hour: Decimal
    """Of all nodes together."""
    spent_usd: Callable[[], Decimal]
    """By the whole run up to now."""
    reservation: RunReservation | None = None
    """In budgets that runs share; None for a budget that is the run's own."""
    overhead_usd: Decimal = Decimal(0)
    """The part of the reservation for what `budget` leaves out."""

    def claim(self, upto_usd: Decimal, *, least_usd: Decimal | None = None) -> SpendingLimit:
        """As `RunReservation.claim`, without the overhead; above 0."""
        if self.reservation is None:
            of = f"budget.run_usd of {format_usd(self.budget.run_usd)}"
            return SpendingLimit(usd=self.budget.run_usd, by=of, is_own_budget=True)
        least_usd = None if least_usd is None else least_usd + self.overhead_usd
        found = self.reservation.claim(upto_usd + self.overhead_usd, least_usd=least_usd)
        return replace(found, usd=max(found.usd - self.overhead_usd, AMOUNT_QUANTUM))

    def affordable_seconds(self) -> float:
        """How long the run may go on before it eats into the reserve; 0 where it does already,
        infinite where time costs nothing."""
        left_usd = self.budget.run_usd - self.budget.reserve_usd - self.spent_usd()
        if left_usd <= 0:
            return 0.0
        rate = per_second(self.usd_per_hour)
        return float(left_usd / rate) if rate else math.inf

    def require(self, seconds: float, what: str) -> None:
        """Refuse work of so many further seconds where the budget does not hold it.

        Args:
            seconds: of all nodes; 0 asks whether anything is left at all.
            what: the work, in words, for the message.

        Raises:
            BudgetRefused: it does not fit.
        """
        spent, usd = self.spent_usd(), Decimal(seconds) * per_second(self.usd_per_hour)
        found = self.claim(spent + usd + self.budget.reserve_usd)
        budget = replace(self.budget, run_usd=found.usd)
        affordable = replace(self, budget=budget).affordable_seconds()
        if affordable > 0 and seconds <= affordable:
            return
        raise BudgetRefused(
            f"{what} needs {seconds:.0f} s more, {format_usd(usd)}. Of the "
            f"{format_usd(found.usd)} that the run may spend, {format_usd(spent)} are spent and "
            f"{format_usd(budget.reserve_usd)} reserved for evaluate, export, gate and "
            f"report. The limit is {found.by}: raise it where `turbo-vaed config "
            "show` finds it set, or lower clip.clips_per_video"
        )
