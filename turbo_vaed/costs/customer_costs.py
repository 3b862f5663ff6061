"""What a statement of costs is made of. USD are Decimal, exact to the last digit of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from turbo_vaed.costs.months import Month


@dataclass(frozen=True, kw_only=True)
class Figure:
    """USD, or the reason why they are not known."""

    usd: Decimal | None
    note: str = ""
    """What a known figure rests on, where that needs saying."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What the last distillation of a customer came to, and the run that it belongs to."""

    run: str
    steps_kept: int
    db_gained: Decimal | None
    """From the first validation to the best one; None with fewer than two."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    """What is known of a customer besides its charges; a text explains what is not known."""

    name: str
    run_budget_usd: Decimal | str
    """What one run may spend."""
    distilled: Distillation | str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a run, of a customer, or of all."""

    charges: int
    node_seconds: Decimal
    spent_usd: Decimal
    """In the period: useful + wasted, to the last digit."""
    useful_usd: Decimal
    wasted_usd: Decimal
    """The part of `spent_usd` that bought nothing."""
    budget: Figure
    """What the runs may spend, each as a whole."""
    left: Figure
    """Of that, after all that they spent, outside the period too; negative above the budget."""
    saving: Figure
    """What the spot machines' node-seconds would have cost on demand, less what was paid."""
    per_step: Figure
    """All charges of distillation, wasted ones too, over the steps that were kept."""
    per_db: Figure
    """As above, over the dB from the first validation to the best."""


@dataclass(frozen=True, kw_only=True)
class StageCostLine:
    """One stage of a run on one market, in the period."""

    stage: str
    market: str
    charges: int
    node_seconds: Decimal
    spent_usd: Decimal
    useful_usd: Decimal
    wasted_usd: Decimal
    saving: Figure
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """A run, as far as it lies in the period."""

    customer: str
    run: str
    first_at: datetime
    last_at: datetime
    outside_usd: Decimal
    """What it spent before and after the period."""
    distill_usd: Decimal
    """What distillation cost it, outside the period too."""
    old_usd: Decimal
    """The part of what it spent that was charged at outdated prices."""
    old_prices: tuple[str, ...]
    """Why those prices were outdated."""
    distilled: Distillation | None
    figures: Figures
    lines: tuple[StageCostLine, ...]
    """In the order in which they first started."""


@dataclass(frozen=True, kw_only=True)
class CustomerCost:
    """A customer, or all of them."""

    name: str
    """Empty for all."""
    runs: int
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class MonthSpent:
    """A month up to the end of the period, for a chart."""

    month: Month
    spent_usd: Decimal
    wasted_usd: Decimal


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Everything that a report of costs shows."""

    customer: str | None
    """The only one that it is about; None for all."""
    period: Month | None
    """None for all time."""
    total: CustomerCost
    customers: tuple[CustomerCost, ...]
    runs: tuple[RunCost, ...]
    """By customer, then in the order in which they first started."""
    months: tuple[MonthSpent, ...]
