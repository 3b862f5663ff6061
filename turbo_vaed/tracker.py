"""What a stage may know of its run beside its inputs; its outputs never depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """The run around a stage. The default one is of no run, and works without any server."""

    spent_usd: Callable[[], Decimal] | None = None
    """The run's spend so far, from the ledger; None where no ledger is kept."""
