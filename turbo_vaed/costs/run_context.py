"""`RunContext`: what a stage may use of the run around it; its outputs never depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from turbo_vaed.costs.reservation import RunReservation


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A service that a stage has paid for on top of its own machines, such as a device farm."""

    resource: str
    unit: str
    quantity: Decimal
    usd_per_unit: Decimal
    began: datetime
    ended: datetime
    source: str
    """Of the price."""
    is_wasted: bool = False
    """Whether it produced nothing."""


@dataclass(frozen=True, kw_only=True)
class DownstreamCost:
    """What the stages after distillation cost, as measured in earlier runs."""

    seconds: float = 0.0
    """Of evaluate, export and gate, on one machine."""
    usd: Decimal = Decimal(0)
    """For disk, buckets and transfer, which are not charged by node time."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run around a stage; the default has no run, and needs no server."""

    token: int | None = None
    """Of the run that holds the customer, larger than that of every run before; None without."""

    spent_usd: Callable[[], Decimal] | None = None
    """The run's spend so far, from the ledger; None where no ledger is kept."""
    reservation: RunReservation | None = None
    """In the budgets that it shares with other runs."""
    downstream: Callable[[], DownstreamCost] | None = None
    """What the customer's earlier runs paid after distillation; None without a ledger."""
    usd_per_hour: Callable[[], Decimal] | None = None
    """Of all nodes that the stage holds now."""
    mark_wasted: Callable[[datetime, datetime, str], object] | None = None
    """Marks the stage's charges between two moments as wasted, with a reason."""
    mark_useful_until: Callable[[datetime], None] | None = None
    """Work up to a moment is saved: its charges are not wasted if the stage fails later."""
    log_metrics: Callable[[Mapping[str, float], int], None] | None = None
    """Logs values at a step, for the run's curves."""
    log_picture: Callable[[bytes, str], None] | None = None
    """Logs a PNG under a file name."""
    tags: Callable[[], Mapping[str, str]] | None = None
    """Tags for the AWS resources of the stage."""
    charge: Callable[[Usage], None] | None = None
    """Charges a usage to the run in the ledger."""
