"""Holds: what runs that are not over keep back of a month that they share with others.

As a hotel's hold on a card. A run tells the ledger the most that its whole spending may come to,
then asks what the others leave to it, and goes no further than both (`costs/reservation.py`). Of
two that do so at once the second to tell sees what the first has told, so that together they keep
within the month. What a run spends is part of what it has told and counts once, however late the
charges come.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

LAPSES_AFTER = timedelta(hours=1)
"""A run of which the ledger has heard nothing for so long, neither a hold nor a charge, is taken to
have been killed, and keeps nothing back. Where a ledger can be written a meter does so several
times a minute."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """What a run keeps back."""

    run: str
    customer: str
    upto_usd: Decimal
    """The most that the whole run may come to."""
    spent_usd: Decimal
    """Of that, by now."""
    heard_at: datetime
    """When it told that, or was charged last."""

    @property
    def usd(self) -> Decimal:
        """Kept back beside what is spent."""
        return max(Decimal(0), self.upto_usd - self.spent_usd)

    def counts(self, at: datetime) -> bool:
        """Whether the run is taken to go on."""
        return at - self.heard_at <= LAPSES_AFTER
