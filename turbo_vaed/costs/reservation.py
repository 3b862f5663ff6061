"""Reservations: how runs that share a month's budget keep within it together.

As a hotel reserves an amount on a card. A run records in the ledger the most that it may spend in
all, then reads what the limits and the other runs' reservations leave it, and spends no more than
either. Of two runs that do so at once, the second to write sees what the first has written. What a
run has spent is part of its reservation and counts once, however late the charges arrive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from turbo_vaed.errors import Unreachable

EXPIRES_AFTER = timedelta(hours=1)
"""A run without a charge or an update of its reservation for this long is taken to have been
killed, and its reservation no longer counts. A live meter writes several times a minute."""
FRESH_SECONDS = 5.0
"""How long a limit that was read answers claims that do not exceed the last one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SpendingLimit:
    """The most that a whole run may spend, including what it has already spent."""

    usd: Decimal
    by: str
    """The limit that sets it, in words."""
    is_own_budget: bool
    """Whether that is the run's own budget, and not one of the month's."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What a run that is not over has reserved of the month's budgets."""

    run: str
    customer: str
    upto_usd: Decimal
    """The most that the whole run may spend."""
    spent_usd: Decimal
    """The part of that which is spent by now."""
    updated_at: datetime
    """When it was last recorded, or the run was last charged."""

    @property
    def unspent_usd(self) -> Decimal:
        """Reserved and not spent yet."""
        return max(Decimal(0), self.upto_usd - self.spent_usd)

    def is_active(self, at: datetime) -> bool:
        """Whether the run is taken to be alive."""
        return at - self.updated_at <= EXPIRES_AFTER


class RunReservation:
    """A run's own reservation: it is recorded before the money is spent.

    Args:
        read_limit: what the limits allow the run to spend in all, now.
        write: records the most that the run may spend in all.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        read_limit: Callable[[], SpendingLimit],
        write: Callable[[Decimal], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_limit, self._write, self._clock = read_limit, write, clock
        self._reserved_usd = Decimal(0)
        self._read_at = -FRESH_SECONDS
        self.last_limit: SpendingLimit | None = None
        """The limit as it was last read."""

    def spending_limit(self) -> SpendingLimit:
        """What the limits allow now; reserves nothing.

        Raises:
            Unreachable: the ledger cannot be read.
        """
        self.last_limit = self._read_limit()
        self._read_at = self._clock()
        return self.last_limit

    def claim(self, upto_usd: Decimal, *, least_usd: Decimal | None = None) -> SpendingLimit:
        """Reserve up to `upto_usd` for the whole run; returns what it may spend.

        A claim that does not fit leaves the reservation as it was, so that a refused run blocks no
        other one.

        Args:
            least_usd: what the run costs if it stops now. This much is reserved in any case, and as
                much more, up to `upto_usd`, as fits.

        Raises:
            Unreachable: the ledger cannot be read. A failure to write is only logged.
        """
        is_fresh = self._clock() - self._read_at < FRESH_SECONDS
        if self.last_limit is not None and is_fresh and upto_usd <= self._reserved_usd:
            return self.last_limit
        before, found = self._reserved_usd, self.spending_limit()
        wanted = upto_usd if least_usd is None else max(least_usd, min(upto_usd, found.usd))
        if least_usd is None and wanted > found.usd:
            return found
        self._record(wanted)
        then = self.spending_limit()  # another run may have reserved between reading and writing
        if least_usd is None and wanted > then.usd:
            self._record(before)
        self.last_limit = min(found, then, key=lambda one: one.usd)
        return self.last_limit

    def _record(self, upto_usd: Decimal) -> None:
        self._reserved_usd = upto_usd
        try:
            self._write(max(Decimal(0), upto_usd))
        except Unreachable as error:  # a full disk ends no stage that is paid for
            _log.warning("this run's reservation is not recorded for other runs: %s", error)
