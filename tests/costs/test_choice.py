"""The checkpoint interval and the expected time, against runs of chance and by brute force."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turbo_vaed.costs.choice import (
    BID_STEP,
    Machine,
    bids,
    checkpoint_interval_seconds,
    choices,
    expected_seconds,
    losses_per_hour,
)
from turbo_vaed.errors import UserError

PLAN: dict[str, float] = {"save_seconds": 20.0, "restart_seconds": 120.0}


def by_chance(
    work: float, interval: float, save: float, restart: float, per_hour: float, rng: random.Random
) -> float:
    """One run, interrupted at random."""
    now, done = restart, 0.0
    until = rng.expovariate(per_hour / 3600) + now
    while done < work:
        part = min(interval, work - done)
        if now + part + save <= until:
            now, done = now + part + save, done + part
            continue
        now = until + restart
        while (gap := rng.expovariate(per_hour / 3600)) < restart:  # taken while it starts
            now += gap
        until = now - restart + gap
    return now


def test_the_expected_time_is_the_mean_of_many_runs() -> None:
    rng = random.Random(1)
    work, interval, per_hour = 6000.0, 600.0, 1.5
    mean = sum(by_chance(work, interval, 20, 120, per_hour, rng) for _ in range(20_000)) / 20_000
    expected = expected_seconds(
        work, interruptions_per_hour=per_hour, interval_seconds=interval, **PLAN
    )
    assert expected == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("per_hour", [0.02, 0.2, 1.0])
def test_no_other_checkpoint_interval_is_much_better(per_hour: float) -> None:
    ours = expected_seconds(36_000, interruptions_per_hour=per_hour, **PLAN)
    best = min(
        expected_seconds(
            36_000, interruptions_per_hour=per_hour, interval_seconds=10.0 * 1.1**i, **PLAN
        )
        for i in range(80)
    )
    assert ours <= 1.005 * best


def test_the_checkpoint_interval_of_youngs_example() -> None:
    # Two minutes between square root of 2 x 5 s x 24 h and the save.
    assert checkpoint_interval_seconds(5, 1 / 24) == pytest.approx(math.sqrt(864_000) - 5)
    assert checkpoint_interval_seconds(5, 0) == math.inf


@example(work=1.0, save=0.0, restart=0.0, few=0.0, more=2.2250738585e-313)
@given(
    work=st.floats(1, 1e6),
    save=st.floats(0, 100),
    restart=st.floats(0, 1000),
    few=st.floats(0, 2),
    more=st.floats(0, 2),
)
def test_more_interruptions_never_take_less_time(
    work: float, save: float, restart: float, few: float, more: float
) -> None:
    low, high = sorted((few, more))
    plan = {"save_seconds": save, "restart_seconds": restart}
    seconds = [
        expected_seconds(work, interruptions_per_hour=x, interval_seconds=900, **plan)
        for x in (low, high)
    ]
    assert seconds[0] <= seconds[1] * (1 + 1e-9) + save
    assert seconds[0] >= work * (1 - 1e-9)


def machine(**facts: Any) -> Machine:
    given: dict[str, Any] = {
        "instance_type": "g5.xlarge",
        "market": "spot",
        "zone": "eu-central-1a",
        "usd_per_hour": Decimal("0.40"),
        "steps_per_second": 1.0,
        "interruptions_per_hour": 0.1,
    }
    return Machine(**(given | facts))


def test_the_cheapest_to_finish_comes_first_and_unknown_prices_last() -> None:
    calm = machine(zone="eu-central-1b", usd_per_hour=Decimal("0.41"), interruptions_per_hour=0.0)
    taken = machine(interruptions_per_hour=2.0)
    listed = machine(market="on-demand", usd_per_hour=Decimal("1.258"), interruptions_per_hour=0.0)
    unknown = machine(zone="eu-central-1c", usd_per_hour=None, why_unknown="no credentials")
    found = choices([unknown, listed, taken, calm], steps=20_000, **PLAN)
    # A price that is a cent lower does not pay for two interruptions an hour.
    assert [c.machine for c in found] == [calm, taken, listed, unknown]
    assert found[-1].usd is None
    assert found[0].usd == pytest.approx(
        Decimal("0.41") * (20_000 + 140) / 3600, abs=Decimal("1e-9")
    )


def test_machines_are_compared_by_the_whole_run_and_not_by_its_steps_alone() -> None:
    """A dear machine that is done with its steps at once, and has to be paid for an hour more."""
    fast = machine(usd_per_hour=Decimal("0.66"), steps_per_second=40, interruptions_per_hour=0.0)
    slow = machine(usd_per_hour=Decimal("0.41"), steps_per_second=8, interruptions_per_hour=0.0)
    unknown = machine(usd_per_hour=None)

    def an_hour(of: Machine, steps_seconds: float) -> Decimal:
        assert of.usd_per_hour is not None and steps_seconds > 0
        return of.usd_per_hour

    given = [unknown, fast, slow]
    found = choices(given, steps=500, save_seconds=1, restart_seconds=1, rest_usd=an_hour)
    assert [choice.machine for choice in found] == [slow, fast, unknown]
    alone = choices(given, steps=500, save_seconds=1, restart_seconds=1)
    assert [choice.machine for choice in alone] == [fast, slow, unknown]
    for whole, steps in zip(found, (alone[1], alone[0], alone[2]), strict=True):
        assert whole.steps_usd == steps.steps_usd == steps.usd
        if whole.usd is not None and whole.steps_usd is not None:
            assert whole.usd - whole.steps_usd == whole.machine.usd_per_hour


def test_a_machine_that_never_gets_there_is_no_choice() -> None:
    (found,) = choices(
        [machine(interruptions_per_hour=1e6)], steps=10**6, save_seconds=600, restart_seconds=6000
    )
    assert found.seconds == math.inf
    assert found.usd is None


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_rates_and_durations_are_refused(value: float) -> None:
    for name in ("save_seconds", "restart_seconds"):
        with pytest.raises(UserError, match=name):
            expected_seconds(10, interruptions_per_hour=0.1, **(PLAN | {name: value}))
    with pytest.raises(UserError, match="interruptions_per_hour"):
        checkpoint_interval_seconds(1, value)
    with pytest.raises(UserError, match="steps per second"):
        choices([machine(steps_per_second=value)], steps=1, **PLAN)


usd = st.decimals(min_value="0.001", max_value=100, places=4)


@given(lowest=usd, price=usd, most=usd)
def test_the_first_granted_bid_is_close_to_the_price(
    lowest: Decimal, price: Decimal, most: Decimal
) -> None:
    tried = list(bids(lowest, most))
    assert tried == sorted(tried)
    assert tried[-1] == most
    granted = [bid for bid in tried if bid >= price]
    assert bool(granted) == (price <= most)
    if granted:
        assert granted[0] <= BID_STEP * max(lowest, price)


@pytest.mark.parametrize(("lowest", "most"), [("0", "1"), ("1", "0"), ("-1", "1"), ("NaN", "1")])
def test_bids_that_would_never_end_are_refused(lowest: str, most: str) -> None:
    with pytest.raises(UserError, match="more than 0"):
        list(bids(Decimal(lowest), Decimal(most)))


def test_expected_losses_follow_those_observed() -> None:
    assert losses_per_hour(0, 0) == pytest.approx(0.2)
    assert losses_per_hour(0, 95) == pytest.approx(0.01)
    assert losses_per_hour(500, 995) == pytest.approx(0.5, rel=0.01)
