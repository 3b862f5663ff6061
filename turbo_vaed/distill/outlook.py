"""What more quality costs, and how long a run still takes: pure functions of what was seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import accumulate

VALIDATIONS = 5
"""So many validations the price of quality is taken over: one alone is mostly noise."""
RECENT_STEPS = 20
"""So many steps their time is the median of: one that waited for something does not count."""


def usd_per_tenth_db(validations: Sequence[tuple[Decimal, float]]) -> Decimal | None:
    """USD for the last 0.1 dB, from (USD spent by the run, PSNR in dB) of each validation.

    The best student so far is what a run gives, so quality is the running best, which never
    falls. None where less than two are known or the last `VALIDATIONS` brought nothing.
    """
    known = [(usd, psnr) for usd, psnr in validations if math.isfinite(psnr)]
    best = list(accumulate((psnr for _, psnr in known), max))[-VALIDATIONS:]
    spent = spent_in_all([usd for usd, _ in known])[-VALIDATIONS:]
    if len(best) < 2 or not best[-1] > best[0]:
        return None
    return (spent[-1] - spent[0]) / Decimal(best[-1] - best[0]) / 10


def spent_in_all(spent: Sequence[Decimal]) -> list[Decimal]:
    """USD of a run and of those whose checkpoints it went on from, at each of its validations.

    Args:
        spent: by the run of that moment: a new one begins again from nothing, and so falls.
    """
    before, found = Decimal(0), []
    for place, usd in enumerate(spent):
        if place and usd < spent[place - 1]:
            before += spent[place - 1]
        found.append(before + usd)
    return found


def seconds_left(
    reached: Mapping[int, float], validated: Sequence[int], *, step: int, steps: int
) -> float | None:
    """Until all `steps` are done; None before there are two of them.

    Args:
        reached: the moment (in seconds) at which each step was done; one is left out where the
            run did not go straight on from it.
        validated: the steps after which validation clips were decoded, in order. The time of
            that may lie before or after the moment of the step.
        step: the last one done.
    """
    times = [
        reached[s + 1] - reached[s]
        for s in range(step - RECENT_STEPS, step)
        if s in reached and s + 1 in reached
    ]
    if not times:
        return None
    step_seconds = statistics.median(times)
    left = (steps - step) * step_seconds
    extra = [
        max(0.0, reached[s + 1] - reached[s - 1] - 2 * step_seconds)
        for s in validated[-VALIDATIONS:]
        if all(n in reached for n in (s - 1, s, s + 1))
    ]
    if not extra:
        return left
    first, last = validated[0], validated[-1]
    every = (last - first) / (len(validated) - 1) if last > first else first
    return left + (steps - step) / every * statistics.median(extra)
