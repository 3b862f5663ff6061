"""At most what spot machines have cost so far, by quotes that are late and a clock that is wrong.

Spot time is billed by the price of its minute, which is known when it is quoted: minutes later, or
an hour. Until then a machine can have cost what was bid for it and no more, for one whose price
passes the bid is taken away and nothing above the bid is billed.

Quotes name the market's time, use is timed by the run's own clock. That clock is read once, at the
start, and from there on counts by itself (`time.monotonic`): it is wrong by one and the same amount
for the whole run, unknown and at most `SKEW_SECONDS`. So the cost is known for each amount by which
the clock may be wrong, and the highest of these costs is an upper bound. It is much lower than the
sum of every minute at the highest quote around it, which no single clock could bring about.

Why it is never too low. Let the clock be ahead of the market by some s in [-S, S], and let -s lie
in [60 i, 60 i + 60] for a whole i. What was used in the clock's minute m was used in the market's
minutes m + i or m + i + 1, so the dearer of the two bounds its price, and so does the bid. The sum
over all use is what `_settled[i]` holds; the bound is the highest over all i. A minute of use
is settled when its quotes are there for every i; before that it counts at its bid.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

SKEW_SECONDS = 300
"""How far a clock may be wrong."""
_REACH = SKEW_SECONDS // 60
_PAD = 2 * _REACH
"""Minutes before the market's first: a clock that is behind begins there."""


class SpotSpending:
    """An upper bound on the cost of the machines used so far: never lower than the bill.

    Args:
        usd_per_hour: by minute of the market's time. Only minutes before the `quoted_until` of
            `settle` are read.
    """

    def __init__(self, usd_per_hour: Sequence[float]) -> None:
        quotes = np.array(usd_per_hour)
        dearer = quotes.copy()
        dearer[:-1] = np.maximum(quotes[:-1], quotes[1:])
        self._dearer = np.concatenate([np.full(_PAD, quotes[0]), dearer])
        self._settled = np.zeros(2 * _REACH)  # USD, by the whole minutes the clock is behind
        self._open: deque[tuple[float, float, float]] = deque()

    @property
    def open(self) -> list[tuple[float, float]]:
        """Periods of the run's clock in which machines were used and which are not yet settled."""
        return [(start, end) for start, end, _ in self._open]

    def used(self, start: float, end: float, bid_usd_per_hour: float) -> None:
        """Record that machines were held from `start` to `end` by the run's clock. Periods are
        recorded in order of time."""
        if end <= start:
            return
        if self._open:
            began, ended, bid = self._open[-1]
            if ended == start and bid == bid_usd_per_hour:
                self._open[-1] = (began, end, bid)
                return
        self._open.append((start, end, bid_usd_per_hour))

    def settle(self, quoted_until: int) -> None:
        """Price what was used by quotes, known for the market's minutes before `quoted_until`."""
        known = 60.0 * quoted_until - SKEW_SECONDS
        while self._open and self._open[0][0] < known:
            start, end, bid = self._open.popleft()
            if end > known:
                self._open.appendleft((known, end, bid))
                end = known
            self._add(start, end, bid)

    def at_most_usd(self) -> float:
        """USD that everything used so far has cost at most."""
        return self.settled_usd() + math.fsum((b - a) * bid for a, b, bid in self._open) / 3600

    def settled_usd(self) -> float:
        """The part of it that is settled by quotes."""
        return float(self._settled.max())

    def _add(self, start: float, end: float, bid: float) -> None:
        first, after = math.floor(start / 60), math.ceil(end / 60)
        seconds = np.full(after - first, 60.0)
        seconds[0] -= start - 60 * first
        seconds[-1] -= 60 * after - end
        prices = self._dearer[first - _REACH + _PAD : after + _REACH - 1 + _PAD]
        self._settled += np.correlate(np.minimum(prices, bid), seconds) / 3600
