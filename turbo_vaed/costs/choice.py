"""Which machine finishes a run for the least: spot or on-demand, which type, which zone.

Young 1974 and Daly 2006 ("A higher order estimate of the optimum checkpoint interval for restart
dumps"): interruptions come at random at a steady rate, each costs the restart and the work since
the last checkpoint, and a checkpoint costs its save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from turbo_vaed.costs.money import time_usd, total_usd
from turbo_vaed.errors import UserError

_NEVER = 1e-9
"""Interruptions per hour, one in a hundred thousand years: fewer are none to a float."""

BID_STEP = Decimal("1.25")
"""Of a bid over the price, and of each further bid over the one that was refused. Higher bids keep
back more money for time that is not quoted yet, lower ones are passed more often."""
_EXPECTED_LOSSES, _EXPECTED_HOURS = 1, 5
"""Before anything was seen: an interruption without notice in five hours."""


def bids(lowest_usd_per_hour: Decimal, most_usd_per_hour: Decimal) -> Iterator[Decimal]:
    """Bids for a machine, to be tried in this order: rising from a quarter above the lowest price.

    A bid below the price is refused at once and costs nothing, so the first that is granted is at
    most `BID_STEP` times the higher of the lowest and the present price, without knowing the
    present one: quotes are late.

    Args:
        lowest_usd_per_hour: of the last day's quotes.
        most_usd_per_hour: that the run has agreed to; the last bid.

    Raises:
        UserError: a price that is not above zero, or not finite.
    """
    prices = (lowest_usd_per_hour, most_usd_per_hour)
    if not all(price.is_finite() and price > 0 for price in prices):
        raise UserError(
            f"bids between {lowest_usd_per_hour} and {most_usd_per_hour} USD per hour; expected "
            "more than 0"
        )
    bid = lowest_usd_per_hour * BID_STEP
    while bid < most_usd_per_hour:
        yield bid
        bid *= BID_STEP
    yield most_usd_per_hour


def losses_per_hour(losses: int, hours: float) -> float:
    """How often a run must expect to be interrupted without notice, by what it has seen.

    Those with notice lose nothing that a save would have kept, and do not count. The mean of a
    gamma distribution that began at one in five hours: a run that has seen nothing saves as if.
    """
    return (_EXPECTED_LOSSES + losses) / (_EXPECTED_HOURS + hours)


def checkpoint_interval_seconds(save_seconds: float, interruptions_per_hour: float) -> float:
    """Training between two checkpoints that costs the least time, Daly's first order.

    sqrt(2 * save * mean time between interruptions) - save, and never below the save; infinity
    where nothing is interrupted.

    Raises:
        UserError: a negative or non-finite value.
    """
    _check("save_seconds", save_seconds)
    _check("interruptions_per_hour", interruptions_per_hour)
    if interruptions_per_hour < _NEVER:
        return math.inf
    between = 3600 / interruptions_per_hour
    return max(math.sqrt(2 * save_seconds * between) - save_seconds, save_seconds)


def expected_seconds(
    work_seconds: float,
    *,
    save_seconds: float,
    restart_seconds: float,
    interruptions_per_hour: float,
    interval_seconds: float | None = None,
) -> float:
    """Mean time to finish so much training, saves, restarts and work done twice included.

    Daly's complete form for exponential interruptions, which may strike during a save and a
    restart, too: M exp(R / M) (exp((t + s) / M) - 1) for every t seconds of work.

    Args:
        interval_seconds: between checkpoints, the best by default.

    Raises:
        UserError: a negative or non-finite value.
    """
    for name, value in (("work_seconds", work_seconds), ("restart_seconds", restart_seconds)):
        _check(name, value)
    best = checkpoint_interval_seconds(save_seconds, interruptions_per_hour)
    if interruptions_per_hour < _NEVER:
        return restart_seconds + work_seconds + save_seconds
    interval = min(best if interval_seconds is None else interval_seconds, work_seconds)
    if work_seconds == 0:
        return restart_seconds
    if interval <= 0:  # a save that takes no time: after every moment of work
        interval = 1e-3
    between = 3600 / interruptions_per_hour
    parts = work_seconds / interval
    try:
        part = between * math.exp(restart_seconds / between)
        part *= math.expm1((interval + save_seconds) / between)
    except OverflowError:
        return math.inf
    return restart_seconds + parts * part


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine that could be had, and what it costs an hour.

    `steps_per_second` is measured if `is_measured`, otherwise estimated.
    """

    instance_type: str
    market: Literal["spot", "on-demand", "local"]
    zone: str
    usd_per_hour: Decimal | None
    steps_per_second: float
    interruptions_per_hour: float
    region: str = ""
    """Of EC2."""
    is_measured: bool = False
    why_unknown: str = ""
    warning: str = ""
    """Why its price is older than it should be."""


@dataclass(frozen=True, kw_only=True)
class MachineChoice:
    """What a run would take on a machine; None where the price is unknown."""

    machine: Machine
    seconds: float
    """Of the steps, interruptions included."""
    checkpoint_every_seconds: float
    steps_usd: Decimal | None
    """Of those seconds."""
    usd: Decimal | None
    """Of the whole: the steps, and what else is paid for a run there."""


def choices(
    machines: Iterable[Machine],
    *,
    steps: int,
    save_seconds: float,
    restart_seconds: float,
    rest_usd: Callable[[Machine, float], Decimal] = lambda machine, seconds: Decimal(0),
) -> list[MachineChoice]:
    """Every machine with its expected cost to finish, the cheapest as a whole first, unknown
    prices last.

    Args:
        rest_usd: USD of everything but the steps, from a machine of known price and the seconds
            that the steps take on it; 0 by default.

    Raises:
        UserError: a machine that makes no step, a negative or non-finite value.
    """
    found = []
    for machine in machines:
        if not (math.isfinite(machine.steps_per_second) and machine.steps_per_second > 0):
            raise UserError(
                f"{machine.instance_type}: {machine.steps_per_second} steps per second; expected "
                "more than 0"
            )
        seconds = 0.0
        if steps:
            seconds = expected_seconds(
                steps / machine.steps_per_second,
                save_seconds=save_seconds,
                restart_seconds=restart_seconds,
                interruptions_per_hour=machine.interruptions_per_hour,
            )
        steps_usd = usd = None
        if machine.usd_per_hour is not None and math.isfinite(seconds):
            steps_usd = time_usd(round(seconds * 1e6), machine.usd_per_hour)
            usd = total_usd((steps_usd, rest_usd(machine, seconds)))
        found.append(
            MachineChoice(
                machine=machine,
                seconds=seconds,
                checkpoint_every_seconds=checkpoint_interval_seconds(
                    save_seconds, machine.interruptions_per_hour
                ),
                steps_usd=steps_usd,
                usd=usd,
            )
        )
    return sorted(found, key=lambda c: (c.usd is None, c.usd or 0, c.seconds))


def _check(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{name} is {value}; expected 0 or more")
