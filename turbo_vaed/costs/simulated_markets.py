"""Random spot markets: prices, quotes, interruptions and a clock that is wrong, for simulations."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_vaed.costs.spot_spending import SKEW_SECONDS

MINUTES = 6000
"""Length of a trace; no run lasts longer."""
NOTICE_SECONDS = 120
"""Between the notice of an interruption and the interruption, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run's plan and luck. Prices in USD per hour, by minute of true time."""

    budget_usd: float
    most_usd_per_hour: float
    """On-demand, and the highest bid."""
    planned_usd_per_hour: float
    """The newest quote when the run was planned."""
    usd_per_hour: list[float]
    is_up: list[bool]
    """Whether there are machines in that minute, for who bids its price."""
    has_notice: list[bool]
    """Whether an interruption in that minute is announced two minutes before."""
    quoted_until: list[int]
    """The minute up to which prices are known in that minute; -1 is none."""
    skew_minutes: float
    """What the run's clock is ahead by; below zero, behind."""
    step_seconds: float
    checkpoint_seconds: float
    restart_seconds: float
    finish_seconds: float
    goal_steps: int
    """Steps that the quality goal takes."""


def random_trace(seed: int, index: int) -> Trace:
    """The trace `index` of `seed`."""
    rng = np.random.default_rng((seed, index))
    on_demand = float(rng.uniform(0.5, 12.0))
    base = on_demand * float(rng.uniform(0.08, 0.6))
    walk = np.exp(np.cumsum(rng.normal(0, 0.03, MINUTES // 60)))  # a new price every hour
    price = base * np.clip(np.repeat(walk, 60), 0.5, 1.6)
    for _ in range(rng.poisson(3)):  # jumps, up to tenfold
        start, length = int(rng.integers(MINUTES)), int(rng.exponential(90)) + 1
        price[start : start + length] *= float(rng.uniform(1.5, 10))
    up = price <= on_demand
    hourly = float(rng.choice([0.0, 0.02, 0.1, 0.3]))
    for taken in np.flatnonzero(rng.random(MINUTES) < hourly / 60):
        up[taken : taken + 1 + int(rng.exponential(8))] = False
    for _ in range(rng.poisson(0.7)):  # a burst: taken again and again for an hour
        start = int(rng.integers(MINUTES))
        for later in rng.integers(0, 60, 6).tolist():
            again = start + later
            up[again : again + 1 + int(rng.exponential(3))] = False
    quoted = np.maximum.accumulate(np.arange(MINUTES) - int(rng.integers(1, 6)))
    for _ in range(rng.poisson(2)):  # no quote for an hour
        start = int(rng.integers(MINUTES))
        quoted[start : start + 60] = quoted[start]
    hours = float(rng.uniform(5, 30))  # at the first price
    step = float(rng.uniform(1, 20))
    save = float(rng.uniform(0.5, 15))
    return Trace(
        budget_usd=base * hours,
        most_usd_per_hour=on_demand,
        planned_usd_per_hour=base,
        usd_per_hour=price.tolist(),
        is_up=up.tolist(),
        has_notice=(rng.random(MINUTES) < 0.7).tolist(),
        quoted_until=quoted.tolist(),
        skew_minutes=int(rng.integers(-SKEW_SECONDS // 60, SKEW_SECONDS // 60 + 1)),
        step_seconds=step,
        checkpoint_seconds=save,
        restart_seconds=float(rng.uniform(30, 240)),
        finish_seconds=float(rng.uniform(60, 600)),
        goal_steps=int(rng.uniform(0.2, 1.0) * hours * 3600 / step),
    )


class Market:
    """Prices and machines of a trace, looked up by true seconds."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._price = np.array(trace.usd_per_hour)
        self._is_up = np.array(trace.is_up) & (self._price <= trace.most_usd_per_hour)
        self._sums: list[float] = [0.0, *np.cumsum(self._price / 60).tolist()]

    def is_up(self, now: float) -> bool:
        """Whether the highest bid gets a machine."""
        return self.is_granted(now, self._trace.most_usd_per_hour)

    def is_granted(self, now: float, bid_usd_per_hour: float) -> bool:
        minute = int(now // 60)
        return (
            minute < MINUTES
            and bool(self._is_up[minute])
            and self._trace.usd_per_hour[minute] <= bid_usd_per_hour
        )

    def has_notice(self, now: float) -> bool:
        return self._trace.has_notice[min(int(now // 60), MINUTES - 1)]

    def taken_after(self, now: float, bid_usd_per_hour: float) -> float:
        """Seconds at which machines that were granted now are taken; a trace's end takes all."""
        minute = int(now // 60)
        stays = self._is_up[minute:] & (self._price[minute:] <= bid_usd_per_hour)
        return 60.0 * (minute + _first(~stays))

    def back_after(self, now: float) -> float:
        """Seconds at which the highest bid gets a machine again, at most the trace's end."""
        minute = int(now // 60)
        return 60.0 * (minute + _first(self._is_up[minute:]))

    def lowest_usd_per_hour(self, quoted_until: int, minutes: int) -> float:
        """Of the quotes of so many minutes up to then; the plan's belongs to those before."""
        begin = quoted_until - minutes
        quotes = self._price[max(begin, 0) : max(quoted_until, 0)]
        lowest = self._trace.planned_usd_per_hour if begin < 0 else float(quotes[0])
        return min(lowest, float(quotes.min())) if len(quotes) else lowest

    def paid(self, at: float) -> float:
        """USD of a machine held from the trace's beginning."""
        minute = int(at // 60)
        rest = (at - 60.0 * minute) / 3600
        return self._sums[minute] + (rest * self._trace.usd_per_hour[minute] if rest else 0.0)

    def cost(self, start: float, end: float) -> float:
        return self.paid(end) - self.paid(start)

    def paid_until(self, start: float, usd: float) -> float:
        """Until when so much pays for a machine that is held from `start` on."""
        goal = self.paid(start) + usd
        minute = bisect.bisect_right(self._sums, goal) - 1
        if minute >= MINUTES:
            return 60.0 * MINUTES
        rest = (goal - self._sums[minute]) / self._trace.usd_per_hour[minute] * 3600
        return max(start, 60.0 * minute + rest)


def _first(wanted: NDArray[np.bool_]) -> int:
    """Place of the first that is wanted, the length where none is."""
    return int(wanted.argmax()) if wanted.any() else len(wanted)
