"""What a run will cost, and what would fit."""

from __future__ import annotations

import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.errors import UserError
from turbo_vaed.planning.estimate import cost_range, steps_that_fit
from turbo_vaed.planning.history import NO_TIME, Pace, Timing, pace

STEADY = Timing(pace=Pace(least=0.8, mean=1.0, most=1.5), once=NO_TIME)
DEAR = Decimal(3600)
"""A dollar a second."""


def test_the_pace_is_that_of_the_whole_run_and_of_its_tenths() -> None:
    gaps = [1.0] * 50 + [2.0] * 50
    found = pace([0.0, *itertools.accumulate(gaps)])
    assert found == Pace(least=1.0, mean=1.5, most=2.0)


def test_a_restart_is_not_a_step() -> None:
    gaps = [1.0] * 50 + [500.0] + [1.0] * 49
    found = pace([0.0, *itertools.accumulate(gaps)])
    assert found == Pace(least=1.0, mean=1.0, most=1.0)


def test_too_few_steps_have_no_pace() -> None:
    assert pace([]) is None and pace([float(i) for i in range(10)]) is None
    assert pace([float(i) for i in range(11)]) is not None


def test_a_run_of_a_hundred_steps() -> None:
    found = cost_range(
        steps=100,
        timing=STEADY,
        other_usd=Decimal(20),
        usd_per_hour=DEAR,
        most_usd_per_hour=2 * DEAR,
        basis="measured",
    )
    assert (found.low_usd, found.likely_usd, found.high_usd) == (100, 120, Decimal(384))
    assert str(found) == "$120.00 ($100.00 to $384.00): measured"
    for steps, other in ((-1, Decimal(0)), (1, Decimal("NaN")), (1, Decimal(-1))):
        with pytest.raises(UserError, match="0 or more"):
            cost_range(
                steps=steps,
                timing=STEADY,
                other_usd=other,
                usd_per_hour=DEAR,
                most_usd_per_hour=DEAR,
                basis="",
            )


@given(
    st.floats(0.01, 100),
    st.decimals(min_value=0, max_value=1000, places=4),
    st.decimals(min_value="0.01", max_value=100, places=4),
    st.decimals(min_value=0, max_value=1000, places=4),
)
def test_the_steps_that_fit_do_and_one_more_does_not(
    mean: float, other: Decimal, usd_per_hour: Decimal, left: Decimal
) -> None:
    timing = Timing(pace=Pace(least=mean, mean=mean, most=mean), once=NO_TIME)
    steps = steps_that_fit(left, timing=timing, other_usd=other, usd_per_hour=usd_per_hour)

    def likely(count: int) -> Decimal:
        return cost_range(
            steps=count,
            timing=timing,
            other_usd=other,
            usd_per_hour=usd_per_hour,
            most_usd_per_hour=usd_per_hour,
            basis="",
        ).likely_usd

    assert steps >= 0
    assert steps == 0 or likely(steps) <= left + Decimal("1e-6")
    assert likely(steps + 1) > left - Decimal("1e-6")
