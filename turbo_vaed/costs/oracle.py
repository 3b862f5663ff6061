"""What a perfect forecast makes of a market: the most steps that its money can buy.

The forecast knows every price and every interruption. It holds machines whenever there are any for
long enough to be of use, pays a restart at the beginning of each stint and a save at its end, loses
no step, and stops at the last one that its money holds.

No run that ends as early makes more steps, whichever minutes it picks: up to its last moment the
forecast leaves out only stints that hold no more than a restart and a save. And a run that takes
machines whenever there are any, as the policy does, has by then paid for every minute that the
forecast paid for. It cannot go on for longer, so it never makes more. (A run that waits for prices
to fall could: the customer waits with it, for as long as it likes. Neither of the two does.)
"""

from __future__ import annotations

from dataclasses import dataclass

from turbo_vaed.costs.simulated_markets import MINUTES, Market, Trace


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The run of a perfect forecast, in machine time."""

    train_seconds: float
    restart_seconds: float
    save_seconds: float


def perfect_forecast(trace: Trace, market: Market) -> Forecast:
    """The best that could be made of this trace."""
    left = trace.budget_usd - trace.finish_seconds * trace.most_usd_per_hour / 3600
    now, trained, stints = 0.0, 0.0, 0
    overhead = trace.restart_seconds + trace.checkpoint_seconds
    while left > 0 and now < 60 * MINUTES:
        if not market.is_up(now):
            now = market.back_after(now)
            continue
        taken = market.taken_after(now, trace.most_usd_per_hour)
        end = min(taken, market.paid_until(now, left))
        if end - now > overhead:
            trained += end - now - overhead
            stints += 1
            left -= market.cost(now, end)
        if end < taken:
            break  # the money is gone
        now = taken
    return Forecast(
        train_seconds=trained,
        restart_seconds=stints * trace.restart_seconds,
        save_seconds=stints * trace.checkpoint_seconds,
    )
