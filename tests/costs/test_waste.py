from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.test_meter import START, Clock, Memory, meter
from turbo_vaed.costs import Charge, Ledger, price_source, summarise, total_usd
from turbo_vaed.costs.money import AMOUNT_QUANTUM, time_usd
from turbo_vaed.costs.waste import waste_corrections
from turbo_vaed.errors import Unreachable

SECOND = 10**9


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def usd(rows: list[Charge] | tuple[Charge, ...], useful: str) -> Decimal:
    return total_usd(c.amount_usd for c in rows if c.useful == useful)


MICROSECONDS = st.integers(0, 10**10)


@pytest.mark.slow
@given(
    st.lists(MICROSECONDS, min_size=1, max_size=12),
    st.lists(st.tuples(MICROSECONDS, MICROSECONDS), max_size=8),
    st.decimals(min_value=0, max_value=1000, places=6),
    st.integers(1, 64),
    st.booleans(),
)
@settings(deadline=None)
def test_any_intervals_are_wasted_once_and_the_total_stays(
    cuts: list[int],
    intervals: list[tuple[int, int]],
    price: Decimal,
    nodes: int,
    fails: bool,
) -> None:
    ledger, clock = Memory(), Clock()
    first_us = clock.now // 1000
    booked = Decimal(0)
    try:
        with meter(ledger, clock=clock, usd_per_hour=price, count=nodes) as running:
            for cut in cuts:
                clock.now += cut * 1000
                running.cut()
            length = clock.now // 1000 - first_us
            spans = [(min(pair), max(pair)) for pair in intervals]
            for start, end in spans:
                span = [START + timedelta(microseconds=n) for n in (start, end)]
                booked += running.mark_wasted(*span, "a drill")
                assert running.mark_wasted(*span, "another word for it") == 0
            assert usd(ledger.rows, "wasted") == booked
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    rows = ledger.rows
    assert total_usd(c.amount_usd for c in rows) == time_usd(length * nodes, price) == running.usd
    assert total_usd(c.quantity for c in rows) == Decimal(length * nodes) / 1_000_000
    if fails:
        assert usd(rows, "useful") == 0
        return
    moments = sorted({0, length, *(min(n, length) for span in spans for n in span)})
    union = sum(
        b - a for a, b in pairwise(moments) if any(start <= a and b <= end for start, end in spans)
    )
    wasted = [c for c in rows if c.useful == "wasted"]
    assert total_usd(c.quantity for c in wasted) == Decimal(union * nodes) / 1_000_000
    exact = Fraction(union * nodes) * Fraction(price) / 3_600_000_000
    allowed = 2 * len(wasted) * Fraction(AMOUNT_QUANTUM)
    assert abs(Fraction(usd(rows, "wasted")) - exact) <= allowed


def test_the_parts_of_a_charge_add_up_to_it_exactly() -> None:
    ledger, clock = Memory(), Clock()
    price = Decimal("0.0000001")  # a second is 2.8e-11 USD: rounding is all that there is
    with meter(ledger, clock=clock, usd_per_hour=price) as running:
        clock.now += 7 * SECOND
        running.cut()
        for tenth in range(70):
            running.mark_wasted(at(tenth / 10), at((tenth + 1) / 10), "bit by bit")
    assert usd(ledger.rows, "useful") == 0
    assert usd(ledger.rows, "wasted") == time_usd(7_000_000, price) > 0


def test_waste_ends_at_the_present() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock, usd_per_hour=Decimal(3600)) as running:
        clock.now += 10 * SECOND
        assert running.mark_wasted(at(4), at(1000), "a worker was lost") == 6
        clock.now += 10 * SECOND
        assert running.mark_wasted(at(-1000), at(4), "another was lost") == 4
    assert (usd(ledger.rows, "useful"), usd(ledger.rows, "wasted")) == (10, 10)


def test_adjacent_slices_share_a_pair_of_corrections_with_the_reason() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock) as running:
        for _ in range(5):
            clock.now += 15 * SECOND
            running.cut()
        running.mark_wasted(at(20), at(70), "steps 41 to 50 were lost with a worker")
    back, wasted = ledger.rows[5:]
    assert (back.started_at, back.ended_at) == (wasted.started_at, wasted.ended_at)
    assert (wasted.started_at, wasted.ended_at, wasted.quantity) == (at(20), at(70), 50)
    assert back.amount_usd == -wasted.amount_usd
    assert (back.useful, wasted.useful) == ("useful", "wasted")
    source = "a test; wasted: steps 41 to 50 were lost with a worker"
    assert back.price_source == wasted.price_source == source


def test_a_long_reason_is_cut_to_the_ledgers_length() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock) as running:
        clock.now += SECOND
        running.mark_wasted(at(0), at(1), "x" * 1000)
    assert {len(c.price_source) for c in ledger.rows[1:]} == {price_source.LENGTH}


def test_charges_of_an_earlier_process_count(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    dollar = {"usd_per_hour": Decimal(3600)}
    with Ledger.open(url) as ledger:
        clock = Clock()
        with meter(ledger, clock=clock, **dollar):
            clock.now += 60 * SECOND
        others = ({"run": "demo-2"}, {"customer": "other"}, {"stage": "encode"})
        for other in others:
            clock = Clock()
            with meter(ledger, clock=clock, **dollar, **other):
                clock.now += 60 * SECOND
    with Ledger.open(url) as ledger:
        clock = Clock(5)
        with meter(ledger, clock=clock, now=lambda: at(300), **dollar) as running:
            clock.now += 20 * SECOND
            assert running.mark_wasted(at(50), at(310), "the driver was killed") == 10 + 10
            assert running.mark_wasted(at(50), at(310), "the driver was killed") == 0
        with (
            pytest.raises(ZeroDivisionError),
            meter(ledger, clock=(clock := Clock(9)), now=lambda: at(400), **dollar) as running,
        ):
            clock.now += 20 * SECOND
            assert running.mark_wasted(at(40), at(410), "again") == 10 + 10 + 10
            raise ZeroDivisionError
        mine = [c for c in ledger.charges(run="demo-1", customer="demo") if c.stage == "clip"]
        assert (usd(mine, "useful"), usd(mine, "wasted")) == (40, 20 + 30 + 10)
        assert usd(ledger.charges(), "wasted") == 60
        assert summarise(ledger, "demo-1", Decimal(1000)).wasted_usd == 60


@pytest.mark.parametrize(
    ("kept", "useful"), [([], 0), ([4], 4), ([4, 8], 8), ([8, 4], 4), ([-5], 0), ([99], 10)]
)
def test_time_kept_as_useful_stays_useful_when_the_block_fails(
    kept: list[int], useful: int
) -> None:
    ledger, clock = Memory(), Clock()
    with (
        pytest.raises(ZeroDivisionError),
        meter(ledger, clock=clock, usd_per_hour=Decimal(3600)) as running,
    ):
        clock.now += 10 * SECOND
        for seconds in kept:
            running.mark_useful_until(at(seconds))
        raise ZeroDivisionError
    assert (usd(ledger.rows, "useful"), usd(ledger.rows, "wasted")) == (useful, 10 - useful)


def test_an_unreachable_ledger_gets_the_corrections_later() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock, usd_per_hour=Decimal(3600)) as running:
        clock.now += 10 * SECOND
        ledger.failures = 1
        with pytest.raises(Unreachable):
            running.mark_wasted(at(0), at(4), "a worker was lost")
        assert ledger.rows == []
        running.cut()
        assert usd(ledger.rows, "wasted") == 4
        assert running.mark_wasted(at(0), at(4), "a worker was lost") == 0


def test_every_machine_keeps_its_own_price() -> None:
    spot = Charge(
        run="r",
        customer="c",
        stage="s",
        resource="a",
        market="spot",
        quantity=Decimal(10),
        unit="node-second",
        unit_price_usd=Decimal(1),
        amount_usd=Decimal(10),
        started_at=at(0),
        ended_at=at(10),
        useful="useful",
        price_source="a test",
    )
    other = replace(spot, resource="b", unit_price_usd=Decimal(2), amount_usd=Decimal(20))
    dear = {"unit_price_usd": Decimal(3), "amount_usd": Decimal(30)}
    later = replace(other, started_at=at(10), ended_at=at(20), **dear)
    first = waste_corrections([spot], at(5), at(7), "why")
    assert [(c.resource, c.amount_usd) for c in first] == [("a", -2), ("a", 2)]
    pairs = waste_corrections([spot, other, later, *first], at(5), at(12), "why")
    booked = [(c.resource, c.unit_price_usd, c.amount_usd) for c in pairs if c.useful == "wasted"]
    assert sorted(booked) == [("a", 1, 3), ("b", 2, 10), ("b", 3, 6)]
    assert waste_corrections([spot, other, later, *first, *pairs], at(5), at(12), "why") == []


def test_an_interval_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="before it begins"):
        waste_corrections([], at(1), at(0), "why")
