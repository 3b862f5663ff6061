"""What a stage may know of its run beside its inputs; its outputs never depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from turbo_vaed.costs.reservation import RunReservation


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Something that a stage has paid for beside the machines that it runs on."""

    resource: str
    unit: str
    quantity: Decimal
    usd_per_unit: Decimal
    began: datetime
    ended: datetime
    source: str
    """Of the price."""
    is_wasted: bool = False
    """Whether nothing came of it."""


@dataclass(frozen=True, kw_only=True)
class DownstreamCost:
    """What has to be paid after distillation, as it was measured in earlier runs."""

    seconds: float = 0.0
    """Of evaluate, export and gate, on one machine."""
    usd: Decimal = Decimal(0)
    """Of what is not time: disk, buckets and transfer."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run around a stage. The default one is of no run, and works without any server."""

    spent_usd: Callable[[], Decimal] | None = None
    """The run's spend so far, from the ledger; None where no ledger is kept."""
    reservation: RunReservation | None = None
    """In the budgets that it shares with other runs."""
    downstream: Callable[[], DownstreamCost] | None = None
    """What the customer's earlier runs have paid after distillation; None where no ledger is."""
    usd_per_hour: Callable[[], Decimal] | None = None
    """Of all nodes that the stage holds now."""
    mark_wasted: Callable[[datetime, datetime, str], object] | None = None
    """What the stage was charged between two moments was for nothing, for this reason."""
    keep: Callable[[datetime], None] | None = None
    """What the stage was charged up to a moment left something to go on from, if it fails now."""
    log_metrics: Callable[[Mapping[str, float], int], None] | None = None
    """Figures at a step, for the run's curves."""
    log_picture: Callable[[bytes, str], None] | None = None
    """A PNG under a file name."""
    tags: Callable[[], Mapping[str, str]] | None = None
    """Of what AWS bills for the stage."""
    charge: Callable[[Usage], None] | None = None
    """Puts it into the ledger."""
