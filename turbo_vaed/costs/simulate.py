"""The budget's policy, replayed on random spot markets: does it hold, and at what price?

A trace is one run's luck: the price of its machines minute by minute (jumps of up to ten times,
hours in which no quote comes), when they are taken away (one by one and in bursts, with and
without notice), and by how much its clock is wrong. `replay` lets `decide` train through it.

The policy knows no future. Before every step it asks `decide`, with the bid for its machines as the
rate and with the spending that `SpotSpending` reports. Its bids rise from the lowest that may be
granted (`bids`); it saves as often as interruptions without notice require (`losses_per_hour`),
before a machine that is announced to go, and when it stops. It holds machines whenever there are
any.

Why it cannot overspend, whatever the market does: a machine is never billed above its bid; what
`SpotSpending` reports is never below the bill; `decide` lets a step go on only if that, the step at
its bid and the reserve are within the budget; and the reserve holds the last save and the rest of
the run at the highest price. So after every step, however it went, the bill and the reserve are
within the budget. docs/budget.md says it at length.

Evaluation, export, gate and report run on the driver, on demand, at the highest price.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from turbo_vaed.costs.budget import Budget, Decision, decide
from turbo_vaed.costs.choice import BID_STEP, bids, checkpoint_interval_seconds, losses_per_hour
from turbo_vaed.costs.oracle import Forecast, perfect_forecast
from turbo_vaed.costs.simulated_markets import MINUTES, NOTICE_SECONDS, Market, Trace, random_trace
from turbo_vaed.costs.spot_spending import SKEW_SECONDS, SpotSpending

Policy = Callable[..., Decision]

_DAY_MINUTES = 24 * 60
_AHEAD = 16
"""Saves that one question asks for, far from the end."""


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """Where the steps went that a perfect forecast makes and the policy does not, as shares of
    the forecast's. They add up to what is missing, but for the rounding to whole steps."""

    interruptions: float = 0.0
    """Trained and lost, for no notice came."""
    saves: float = 0.0
    """More than one a stint."""
    restarts: float = 0.0
    """More than the forecast's: stints of no use, and those that a bid ended."""
    unquoted: float = 0.0
    """Not bought, for time without quotes counts at its bid."""
    clock: float = 0.0
    """Not bought, for the clock may be wrong."""
    last_step: float = 0.0
    """Not bought, for a step, a start and a save must fit at the bid, and the last save at most."""


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
    shortfall: Shortfall

    @property
    def over_usd(self) -> float:
        """Spent beyond the budget; rounding errors count as nothing."""
        over = self.spent_usd - self.budget_usd
        return over if over > 1e-9 * self.budget_usd else 0.0

    @property
    def was_reachable(self) -> bool:
        return self.oracle_steps >= self.goal_steps

    @property
    def share_of_oracle(self) -> float:
        return self.steps / self.oracle_steps if self.oracle_steps else 1.0


def replay(trace: Trace, policy: Policy = decide) -> Replay:
    """One run under the policy, from its first machine to its report."""
    run = _Run(trace, policy)
    run.train()
    finish_usd = trace.finish_seconds * trace.most_usd_per_hour / 3600
    forecast = perfect_forecast(trace, run.market)
    return Replay(
        budget_usd=trace.budget_usd,
        spent_usd=run.spent + finish_usd,
        steps=run.kept,
        oracle_steps=int(forecast.train_seconds / trace.step_seconds + 1e-6),
        goal_steps=trace.goal_steps,
        lost_steps=run.lost_steps,
        interruptions=run.interruptions,
        shortfall=run.shortfall(forecast),
    )


class _Run:
    """A run on its way through a trace. Times are true seconds, money is USD."""

    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace, self.policy, self.market = trace, policy, Market(trace)
        self.budget = Budget.plan(
            run_usd=Decimal(trace.budget_usd),
            warn_share=0.8,
            reserve_seconds=trace.checkpoint_seconds + trace.finish_seconds,
            usd_per_hour=Decimal(trace.most_usd_per_hour),
        )
        self.spending = SpotSpending(trace.usd_per_hour)
        self.now = self.spent = 0.0
        self.kept = self.unsaved = 0  # steps, in the last checkpoint and since
        self.save_every = 1
        self.allowed_until, self.looks_ahead = 0.0, True  # at this bid
        # Machines: bid for them, taken at, whether they are still starting, trained unsaved from.
        self.bid, self.taken_at, self.is_fresh, self.since = 0.0, 0.0, True, 0.0
        self.interruptions = self.losses = self.lost_steps = 0
        self.held_seconds = self.restart_seconds = self.save_seconds = self.lost_seconds = 0.0

    def train(self) -> None:
        """Up to the stop, or to the trace's end."""
        while self._has_machines():
            if self._lower_bid_pays():
                self._rent()
            steps, saves = self._next_steps()
            if not steps and not self.unsaved:
                return
            # What is allowed is done at once; with no step allowed, it is the last save.
            if not self._take(steps, saves):
                self._taken(steps)
            elif not steps:
                return

    def _has_machines(self) -> bool:
        if self.now < self.taken_at:
            return True
        if self.unsaved:  # taken in the very moment in which a step was done
            self._taken(0)
        return self._rent()

    @property
    def quoted_until(self) -> int:
        return self.trace.quoted_until[min(int(self.now // 60), MINUTES - 1)]

    def _rent(self) -> bool:
        """The next machines that are to be had, for the lowest bid that gets them."""
        if not self.market.is_up(self.now):
            self.now = self.market.back_after(self.now)
        if self.now >= 60 * MINUTES:
            return False
        lowest = self.market.lowest_usd_per_hour(self.quoted_until, _DAY_MINUTES)
        most = Decimal(self.trace.most_usd_per_hour)
        for bid in map(float, bids(Decimal(lowest), most)):
            if self.market.is_granted(self.now, bid):
                self.bid = bid
                break
        self.taken_at = self.market.taken_after(self.now, self.bid)
        self.is_fresh, self.unsaved = True, 0
        self.allowed_until, self.looks_ahead = self.now, True
        return True

    def _lower_bid_pays(self) -> bool:
        """Whether to begin anew with a lower bid: near the end a high one keeps back more, for
        the time that is not quoted yet, than a restart costs. Only where nothing is unsaved."""
        if self.is_fresh or self.unsaved or self.quoted_until < 1:
            return False
        quote = self.trace.usd_per_hour[self.quoted_until - 1]
        bid = min(quote * float(BID_STEP), self.trace.most_usd_per_hour)
        clock = self.now + 60 * self.trace.skew_minutes
        unquoted = clock - (60 * self.quoted_until - SKEW_SECONDS)
        if unquoted * (self.bid - bid) <= self.trace.restart_seconds * quote:
            return False
        self.spending.settle(self.quoted_until)
        left = float(self.budget.run_usd - self.budget.reserve_usd) - self.spending.at_most_usd()
        return unquoted * bid < 3600 * left < 3 * unquoted * self.bid

    def _next_steps(self) -> tuple[int, bool]:
        """How many steps may be taken at once, and whether a save follows.

        The result is that of asking the policy before every step: spending grows by the bid at
        most, so if all of the steps together are allowed, each of them is. If they are not, half
        as many are tried.
        """
        if not self.unsaved:
            interval = checkpoint_interval_seconds(
                self.trace.checkpoint_seconds,
                losses_per_hour(self.losses, self.held_seconds / 3600),
            )
            self.save_every = max(1, round(interval / self.trace.step_seconds))
        steps = self.save_every - self.unsaved
        if self._is_allowed_ahead(self._seconds(steps, True)):
            return steps, True
        self.spending.settle(self.quoted_until)
        while steps:
            saves = self.unsaved + steps >= self.save_every
            if self._is_allowed(self._seconds(steps, saves)):
                return steps, saves
            steps //= 2
        return 0, True

    def _is_allowed_ahead(self, seconds: float) -> bool:
        """The same, from an answer for several times as long where there is one; with nothing
        settled since, for that would only lower what is spent."""
        if self.now + seconds <= self.allowed_until:
            return True
        if self.looks_ahead:
            self.looks_ahead = self._is_allowed(_AHEAD * seconds)
            if self.looks_ahead:
                self.allowed_until = self.now + _AHEAD * seconds
                return True
        return self._is_allowed(seconds)

    def _is_allowed(self, seconds: float) -> bool:
        return not self.policy(
            self.budget,
            spent_usd=Decimal(self.spending.at_most_usd()),
            rate_usd_per_second=Decimal(self.bid) / 3600,
            next_step_seconds=seconds,
        ).stop

    def _seconds(self, steps: int, saves: bool) -> float:
        trace = self.trace
        start = trace.restart_seconds if self.is_fresh else 0.0
        save = trace.checkpoint_seconds if saves else 0.0
        return start + steps * trace.step_seconds + save

    def _take(self, steps: int, saves: bool) -> bool:
        """Pay for it; whether it was had before the machines were taken."""
        trace, began = self.trace, self.now
        wanted = began + self._seconds(steps, saves)
        self.now = end = min(wanted, self.taken_at)
        self.spent += self.market.cost(began, end)
        skew = 60 * trace.skew_minutes
        self.spending.used(began + skew, end + skew, self.bid)
        self.held_seconds += end - began
        if self.is_fresh:
            self.since = began + trace.restart_seconds
            self.restart_seconds += min(trace.restart_seconds, end - began)
        if end < wanted:
            return False
        self.is_fresh = False
        self.unsaved += steps
        if saves:
            self.save_seconds += trace.checkpoint_seconds
            self.kept, self.unsaved, self.since = self.kept + self.unsaved, 0, end
        return True

    def _taken(self, steps: int) -> None:
        """Back to the last checkpoint, or to the one that a notice brought.

        Args:
            steps: under way.
        """
        trace = self.trace
        trained = max(0.0, self.now - self.since)
        begun = min(self.unsaved + steps, int(trained / trace.step_seconds))
        saved = 0
        if not self.market.has_notice(self.now):
            self.losses += 1
        elif trace.checkpoint_seconds <= min(NOTICE_SECONDS, trained):
            trained -= trace.checkpoint_seconds
            self.save_seconds += trace.checkpoint_seconds
            saved = min(begun, int(trained / trace.step_seconds))
        self.kept += saved
        self.lost_steps += begun - saved
        self.lost_seconds += trained - saved * trace.step_seconds
        self.interruptions += 1
        self.unsaved = 0

    def shortfall(self, forecast: Forecast) -> Shortfall:
        """By cause, when the run is over."""
        if not forecast.train_seconds:
            return Shortfall()
        trace, skew = self.trace, 60 * self.trace.skew_minutes
        saves = self.save_seconds - forecast.save_seconds
        restarts = self.restart_seconds - forecast.restart_seconds
        missing = forecast.train_seconds - self.kept * trace.step_seconds
        # What is left is time that was not held, for money that was not spent.
        unheld = missing - saves - restarts - self.lost_seconds
        self.spending.settle(self.quoted_until)
        bound, settled = self.spending.at_most_usd(), self.spending.settled_usd()
        open_usd = math.fsum(self.market.cost(a - skew, b - skew) for a, b in self.spending.open)
        finish_usd = trace.finish_seconds * trace.most_usd_per_hour / 3600
        unspent = trace.budget_usd - self.spent - finish_usd
        unquoted = bound - settled - open_usd
        clock = settled - (self.spent - open_usd)
        whole = forecast.train_seconds
        per_usd = unheld / unspent / whole if unspent > 0 else 0.0
        return Shortfall(
            interruptions=self.lost_seconds / whole,
            saves=saves / whole,
            restarts=restarts / whole,
            unquoted=unquoted * per_usd,
            clock=clock * per_usd,
            last_step=(unspent - unquoted - clock) * per_usd,
        )


def simulate(
    traces: int,
    seed: int,
    *,
    processes: int | None = None,
    report_done: Callable[[int], None] = lambda _: None,
) -> list[Replay]:
    """Replays of the first `traces` traces of a seed, in order, whatever the number of processes.

    Args:
        report_done: called with the number of replays that are done.
    """
    found: list[Replay] = []
    for batch in _batches(traces, seed, processes or os.cpu_count() or 1):
        found += batch
        report_done(len(found))
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
        "steps_of_oracle_lowest": round(shares[0], 4) if shares else None,
        "traces_below_95_percent": sum(share < 0.95 for share in shares),
        "interruptions": sum(r.interruptions for r in replays),
        "lost_steps": sum(r.lost_steps for r in replays),
        "budget_spent_median": round(
            statistics.median(r.spent_usd / r.budget_usd for r in replays), 4
        )
        if replays
        else None,
        **{f"shortfall_{cause}": share for cause, share in mean_shortfall(reachable).items()},
    }


def mean_shortfall(replays: list[Replay]) -> dict[str, float]:
    """By cause, the mean over the replays; see `Shortfall`."""
    rows = [asdict(r.shortfall) for r in replays] or [asdict(Shortfall())]
    return {cause: round(statistics.fmean(row[cause] for row in rows), 5) for cause in rows[0]}
