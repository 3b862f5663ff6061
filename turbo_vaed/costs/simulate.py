"""The budget's policy, replayed on random spot markets: does it hold, and at what price?

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
from turbo_vaed.costs.markets import MINUTES, SKEW_SECONDS, Market, Trace, random_trace

Policy = Callable[..., Decision]


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


def replay(trace: Trace, policy: Policy = decide, *, keep_curve: bool = False) -> Replay:
    """One run under the policy, from its first machine to its report."""
    budget = Budget.plan(
        run_usd=Decimal(trace.budget_usd),
        warn_share=0.8,
        reserve_seconds=trace.checkpoint_seconds + trace.finish_seconds,
        usd_per_hour=Decimal(trace.most_usd_per_hour),
    )
    worst = Decimal(trace.most_usd_per_hour / 3600)
    market, bound = Market(trace), _Bound(trace)
    kept = trained = lost = 0.0  # seconds of training
    interruptions, must_start = 0, True
    spent, now = 0.0, 0.0
    curve: list[tuple[float, float]] = []

    def pay(seconds: float) -> float:
        """Use the machines for so long or until they are taken; seconds that were had."""
        nonlocal spent, now
        until = market.taken_after(now, now + seconds)
        spent += market.cost(now, until)
        bound.used(now, until)
        had = seconds if until == now + seconds else until - now
        now = until
        return had

    while now < (MINUTES - 1) * 60:
        if not market.is_up(now):
            now, must_start = market.back_after(now), True
            continue
        start = trace.restart_seconds if must_start else 0.0
        is_due = trained + trace.ask_seconds - kept >= trace.checkpoint_every_seconds
        upto = start + trace.ask_seconds + (trace.checkpoint_seconds if is_due else 0.0)
        believed = bound.usd(now)
        if keep_curve:
            curve.append((now / 3600, believed))
        if policy(
            budget,
            spent_usd=Decimal(believed),
            rate_usd_per_second=worst,
            next_step_seconds=upto,
        ).stop:
            break
        had = pay(upto)
        if had < upto:  # taken: back to the checkpoint, or to the one that a notice brought
            interruptions += 1
            trained += min(max(had - start, 0.0), trace.ask_seconds)
            if market.has_notice(now):
                kept = trained
            lost += trained - kept
            trained = kept
            continue
        must_start, trained = False, trained + trace.ask_seconds
        kept = trained if is_due else kept
    if trained > kept and pay(trace.checkpoint_seconds) == trace.checkpoint_seconds:
        kept = trained
    spent += trace.finish_seconds * trace.most_usd_per_hour / 3600
    return Replay(
        budget_usd=trace.budget_usd,
        spent_usd=spent,
        steps=int(kept / trace.step_seconds),
        oracle_steps=_oracle(trace, market),
        goal_steps=trace.goal_steps,
        lost_steps=int((lost + trained - kept) / trace.step_seconds),
        interruptions=interruptions,
        curve=tuple(curve),
    )


def _oracle(trace: Trace, market: Market) -> int:
    """Steps of a run that knew its trace beforehand."""
    left = trace.budget_usd - trace.finish_seconds * trace.most_usd_per_hour / 3600
    now, trained, must_start = 0.0, 0.0, True
    while now < 60 * MINUTES:
        if not market.is_up(now):
            now, must_start = market.back_after(now), True
            continue
        end = market.taken_after(now, 60.0 * MINUTES)
        idle = (trace.restart_seconds if must_start else 0.0) + trace.checkpoint_seconds
        end = min(end, market.paid_until(now, left))
        if end - now > idle:
            trained += end - now - idle
            left -= market.cost(now, end)
        if end < market.taken_after(now, 60.0 * MINUTES):
            break  # the money is gone
        now, must_start = end, True
    return int(trained / trace.step_seconds)


class _Bound:
    """What a run has spent at most: quoted time by its quotes, the rest at the highest price."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        price = np.array(trace.usd_per_hour)
        most = price.copy()
        reach = SKEW_SECONDS // 60 + 1  # a minute more: a moment lies within its own
        for shift in range(1, reach + 1):
            most[shift:] = np.maximum(most[shift:], price[:-shift])
            most[:-shift] = np.maximum(most[:-shift], price[shift:])
        self._most = np.minimum(most, trace.most_usd_per_hour).tolist()
        self._settled = 0.0
        self._due: list[tuple[float, float]] = []

    def used(self, start: float, end: float) -> None:
        if end > start:
            self._due.append((start, end))

    def usd(self, now: float) -> float:
        """At most this was spent up to now."""
        trace = self._trace
        minute = int(now // 60)
        # Prices are known up to here, by a clock that is wrong.
        known = 60.0 * (trace.quoted_until[min(minute, MINUTES - 1)] - SKEW_SECONDS // 60)
        skew = 60 * trace.skew_minutes
        while self._due and self._due[0][1] + skew <= known:
            start, end = self._due.pop(0)
            self._settled += self._by_quotes(start + skew, end + skew)
        open_ = math.fsum(end - start for start, end in self._due)
        return self._settled + open_ * trace.most_usd_per_hour / 3600

    def _by_quotes(self, start: float, end: float) -> float:
        """USD of a span by this clock, each minute at the highest of those around it."""
        usd, at = 0.0, start
        while at < end:
            minute = math.floor(at / 60)
            until = min(end, 60.0 * (minute + 1))
            usd += (until - at) * self._most[min(max(minute, 0), MINUTES - 1)] / 3600
            at = until
        return usd


def simulate(
    traces: int,
    seed: int,
    *,
    processes: int | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> list[Replay]:
    """Replays of the first `traces` traces of a seed, in order, whatever the number of processes.

    Args:
        told: takes how many are done.
    """
    found: list[Replay] = []
    for batch in _batches(traces, seed, processes or os.cpu_count() or 1):
        found += batch
        told(len(found))
    return found


def _batches(traces: int, seed: int, processes: int) -> Iterator[list[Replay]]:
    parts = [range(i, min(i + 100, traces)) for i in range(0, traces, 100)]
    one = partial(_replay_all, seed)
    if processes == 1 or len(parts) == 1:
        yield from map(one, parts)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(one, parts)


def _replay_all(seed: int, indices: range) -> list[Replay]:
    return [replay(random_trace(seed, index)) for index in indices]


def summary(replays: list[Replay]) -> dict[str, Any]:
    """What the traces came to: the figures of `turbo-vaed cost simulate`."""
    over = [r.over_usd for r in replays]
    reachable = [r for r in replays if r.was_reachable]
    shares = sorted(r.share_of_oracle for r in reachable)
    return {
        "traces": len(replays),
        "overspent": sum(usd > 0 for usd in over),
        "worst_overspend_usd": round(max(over, default=0.0), 6),
        "goal_reachable": len(reachable),
        "goal_reached": sum(r.steps >= r.goal_steps for r in reachable),
        "median_steps_of_oracle": round(statistics.median(shares), 4) if shares else None,
        "steps_of_oracle_5th_percentile": round(shares[len(shares) // 20], 4) if shares else None,
        "traces_below_95_percent": sum(share < 0.95 for share in shares),
        "interruptions": sum(r.interruptions for r in replays),
        "lost_steps": sum(r.lost_steps for r in replays),
        "budget_spent_median": round(
            statistics.median(r.spent_usd / r.budget_usd for r in replays), 4
        )
        if replays
        else None,
    }
