"""A run's share of limits that others spend of, too."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from turbo_vaed.errors import Unreachable

FRESH_SECONDS = 5.0
"""So long an answer counts for a claim that holds no more than the last one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a run may spend in all, what it has already spent included."""

    usd: Decimal
    by: str
    """The limit that is nearest, in words."""
    is_own: bool
    """Whether that is the run's own budget, and no month's."""


class Share:
    """A run's share of the limits: others are told of it before it is used (`costs/holds.py`).

    Args:
        ask: what the limits leave to the run now.
        tell: others, of the most that the run may come to.
        beside_usd: of both, for what is spent beside what is claimed.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        ask: Callable[[], Allowance],
        tell: Callable[[Decimal], None],
        overhead_usd: Decimal = Decimal(0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._tell, self._overhead_usd, self._clock = ask, tell, overhead_usd, clock
        self._told_usd = Decimal(0)
        self._asked_at = -FRESH_SECONDS
        self.last: Allowance | None = None
        """What the limits left when they were asked last."""

    def ask(self) -> Allowance:
        """What they leave now, `overhead_usd` taken off; nothing is told.

        Raises:
            Unreachable: the ledger cannot be read.
        """
        found = self._ask()
        self.last = replace(found, usd=found.usd - self._overhead_usd)
        self._asked_at = self._clock()
        return self.last

    def claim(self, upto_usd: Decimal, *, least_usd: Decimal | None = None) -> Allowance:
        """What the run may spend in all; by then others know that it may come to `upto_usd`. Where
        that does not fit they are told nothing new: a run that is refused stops no other.

        Args:
            least_usd: what it comes to if it stops now. They are told of that in any case, and of
                as much more, up to `upto_usd`, as fits.

        Raises:
            Unreachable: the ledger cannot be read. That it takes no word is logged.
        """
        is_fresh = self._clock() - self._asked_at < FRESH_SECONDS
        if self.last is not None and is_fresh and upto_usd <= self._told_usd:
            return self.last
        before, found = self._told_usd, self.ask()
        told = upto_usd if least_usd is None else max(least_usd, min(upto_usd, found.usd))
        if least_usd is None and told > found.usd:
            return found
        self._say(told)
        then = self.ask()  # what was told between the question and our word is seen now
        if least_usd is None and told > then.usd:
            self._say(before)
        self.last = min(found, then, key=lambda one: one.usd)
        return self.last

    def _say(self, upto_usd: Decimal) -> None:
        self._told_usd = upto_usd
        try:
            self._tell(max(Decimal(0), upto_usd) + self._overhead_usd)
        except Unreachable as error:  # a full disk ends no stage that is paid for
            _log.warning("other runs are not told what this one may come to: %s", error)
