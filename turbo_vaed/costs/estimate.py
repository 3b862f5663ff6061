"""What a run will cost, from what the last one took; and what would fit a budget."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from turbo_vaed.costs.money import format_usd, quantise_usd, time_usd, total_usd
from turbo_vaed.errors import BudgetRefused, UserError

_TENTHS = 10
UNFORESEEN = Decimal("1.2")
"""The dear end of a range: the slowest tenth all the way, and a fifth on top for restarts."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds: per step of a run that was measured, validations and checkpoints included, or of
    what is done once."""

    least: float
    mean: float
    most: float
    """Of its fastest and slowest tenth."""


NO_TIME = Pace(least=0, mean=0, most=0)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """USD of a whole run, and what that rests on."""

    low_usd: Decimal
    likely_usd: Decimal
    high_usd: Decimal
    seconds: float
    """Of the steps, the likely one."""
    basis: str

    def __str__(self) -> str:
        return (
            f"{format_usd(self.likely_usd)} ({format_usd(self.low_usd)} to "
            f"{format_usd(self.high_usd)}), {self.basis}"
        )


def pace(moments: Sequence[float]) -> Pace | None:
    """From the moments (in seconds) at which steps were done, in order; None before there are ten.

    A gap of more than twenty times the median is a restart and is left out: what it cost stands in
    the ledger as wasted.
    """
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    if len(gaps) < _TENTHS:
        return None
    limit = 20 * statistics.median(gaps)
    gaps = [gap for gap in gaps if 0 <= gap <= limit]
    size = len(gaps) / _TENTHS
    parts = [gaps[round(i * size) : round((i + 1) * size)] for i in range(_TENTHS)]
    means = [statistics.fmean(part) for part in parts if part]
    return Pace(least=min(means), mean=statistics.fmean(gaps), most=max(means))


def estimate(
    *,
    steps: int,
    measured: Pace,
    once: Pace = NO_TIME,
    other_usd: Decimal,
    least_other_usd: Decimal | None = None,
    usd_per_hour: Decimal,
    most_usd_per_hour: Decimal,
    basis: str,
) -> Estimate:
    """A run of so many steps at a measured pace.

    Args:
        once: of all nodes, beside the steps, where it is known as time.
        other_usd: of everything beside those: the other stages, and starts.
        least_other_usd: of it, for the low end; all of it where None.
        usd_per_hour: of all nodes together, now.
        most_usd_per_hour: that they can come to.
        basis: in words, what was measured where.

    Raises:
        UserError: a negative value, or one that is not finite.
    """
    if steps < 0 or not other_usd.is_finite() or other_usd < 0:
        raise UserError(
            f"estimate: steps {steps}, other_usd {other_usd}; expected 0 or more of both"
        )

    def usd(seconds: float, rate: Decimal, other: Decimal = other_usd) -> Decimal:
        return total_usd((other, time_usd(round(seconds * 1e6), rate)))

    least = other_usd if least_other_usd is None else least_other_usd

    likely = steps * measured.mean
    return Estimate(
        low_usd=usd(once.least + steps * measured.least, usd_per_hour, least),
        likely_usd=usd(once.mean + likely, usd_per_hour),
        high_usd=quantise_usd(
            usd(once.most + steps * measured.most, most_usd_per_hour) * UNFORESEEN
        ),
        seconds=likely,
        basis=basis,
    )


def steps_that_fit(
    left_usd: Decimal,
    *,
    measured: Pace,
    once: Pace = NO_TIME,
    other_usd: Decimal,
    usd_per_hour: Decimal,
) -> int:
    """The most steps whose likely cost is within `left_usd`; 0 where not even the rest is.

    Raises:
        UserError: time costs nothing, so that any number of steps fits.
    """
    if usd_per_hour == 0:
        raise UserError("estimate: where time costs nothing every number of steps fits")
    seconds = float((left_usd - other_usd) / usd_per_hour) * 3600
    return max(0, math.floor((seconds - once.mean) / measured.mean))


def require_fit(found: Estimate, left_usd: Decimal, *, of: str = "", change: str) -> None:
    """Refuse a run that does not fit its budget even at its cheapest.

    Args:
        left_usd: what the run may spend.
        of: the limit that leaves no more, in words.
        change: in words, the cheapest change with which it would.

    Raises:
        BudgetRefused: the low end of the estimate is above `left_usd`.
    """
    if found.low_usd <= left_usd:
        return
    left = f"{format_usd(max(left_usd, Decimal(0)))} may be spent{of and f' of {of}'}"
    raise BudgetRefused(
        f"the run cannot fit its budget: it is estimated at {found}, and {left}; {change}"
    )
