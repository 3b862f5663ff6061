"""The budget's policy, replayed on random spot markets: does it hold, and what does it cost in steps?

A trace is one run's luck: the price of its machines minute by minute (jumps of up to ten times,
hours in which no quote comes), when they are taken away (one by one and in bursts, with and
without notice), and by how much its clock is wrong. `replay` lets `decide` train through it. The
policy knows no future: time whose price has not been quoted yet counts at the most that the run
has agreed to pay, and a quote counts as the highest within `SKEW_SECONDS`, so that a clock that is
wrong by as much cannot make a minute look cheaper than it was.

What a perfect forecast would have made is the same run with the same machines, which is never paid
twice for a step, saves just before a machine is taken, and stops at the last step that fits.

Evaluation, export, gate and report run on the driver, on demand, at the highest price.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from turbo_vaed.costs.budget import Budget, Decision, decide

MINUTES = 6000
"""Length of a trace; no run lasts longer."""
SKEW_SECONDS = 300
"""How far a clock may be wrong."""
Policy = Callable[..., Decision]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run's plan and luck. Prices in USD per hour, by minute of true time."""

    budget_usd: float
    most_usd_per_hour: float
    """On-demand, and the highest bid: a machine whose price passes it is taken away."""
    usd_per_hour: list[float]
    is_up: list[bool]
    """Whether there are machines in that minute."""
    has_notice: list[bool]
    """Whether an interruption in that minute is told two minutes before."""
    quoted_until: list[int]
    """The minute up to which prices are known in that minute; -1 is none."""
    skew_minutes: int
    """What the clock is wrong by."""
    step_seconds: float
    checkpoint_every: int
    """Steps."""
    checkpoint_seconds: float
    restart_seconds: float
    finish_seconds: float
    goal_steps: int
    """Steps that the quality goal takes."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What became of a trace."""

    budget_usd: float
    spent_usd: float
    steps: int
    oracle_steps: int
    goal_steps: int
    lost_steps: int
    interruptions: int
    curve: tuple[tuple[float, float], ...] = ()
    """(hours, USD) before each step, where it was asked for."""

    @property
    def over_usd(self) -> float:
        """Spent beyond the budget; what floats cannot tell from nothing is nothing."""
        over = self.spent_usd - self.budget_usd
        return over if over > 1e-9 * self.budget_usd else 0.0

    @property
    def was_reachable(self) -> bool:
        return self.oracle_steps >= self.goal_steps

    @property
    def share_of_oracle(self) -> float:
        return self.steps / self.oracle_steps if self.oracle_steps else 1.0


def random_trace(seed: int, index: int) -> Trace:
    """The trace `index` of `seed`."""
    rng = np.random.default_rng((seed, index))
    on_demand = float(rng.uniform(0.5, 12.0))
    base = on_demand * float(rng.uniform(0.08, 0.6))
    walk = np.exp(np.cumsum(rng.normal(0, 0.004, MINUTES)))
    price = base * np.clip(walk, 0.5, 2)
    for _ in range(rng.poisson(3)):  # jumps, up to tenfold
        start, length = int(rng.integers(MINUTES)), int(rng.exponential(90)) + 1
        price[start : start + length] *= float(rng.uniform(1.5, 10))
    up = price <= on_demand
    hourly = float(rng.choice([0.0, 0.02, 0.1, 0.3]))
    for start in np.flatnonzero(rng.random(MINUTES) < hourly / 60):
        up[start : start + 1 + int(rng.exponential(8))] = False
    for _ in range(rng.poisson(0.7)):  # a burst: taken again and again for an hour
        start = int(rng.integers(MINUTES))
        for again in start + rng.integers(0, 60, 6):
            up[again : again + 1 + int(rng.exponential(3))] = False
    quoted = np.maximum.accumulate(np.arange(MINUTES) - int(rng.integers(1, 6)))
    for _ in range(rng.poisson(2)):  # no quote for an hour
        start = int(rng.integers(MINUTES))
        quoted[start : start + 60] = quoted[start]
    budget = float(rng.choice([10, 25, 50, 95, 200]))
    hours = min(budget / base, MINUTES / 60 / 3)
    step = hours * 3600 / float(rng.uniform(200, 500))  # so many questions, however long it lasts
    step = min(step, 900.0)
    save = float(rng.uniform(0.5, 15))
    # Young 1974: the square root of twice the save time and the time between interruptions.
    interval = math.sqrt(2 * save * 3600 / max(hourly, 0.02))
    return Trace(
        budget_usd=budget,
        most_usd_per_hour=on_demand,
        usd_per_hour=price.tolist(),
        is_up=up.tolist(),
        has_notice=(rng.random(MINUTES) < 0.7).tolist(),
        quoted_until=quoted.tolist(),
        skew_minutes=int(rng.integers(-SKEW_SECONDS // 60, SKEW_SECONDS // 60 + 1)),
        step_seconds=step,
        checkpoint_every=max(1, round(interval / step)),
        checkpoint_seconds=save,
        restart_seconds=float(rng.uniform(30, 240)),
        finish_seconds=float(rng.uniform(60, 600)),
        goal_steps=int(rng.uniform(0.2, 1.0) * hours * 3600 / step),
    )
