from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.metered import PRICE, START, Clock, Memory, meter
from turbo_vaed.costs import Ledger, Meter, Rate, steady, total_usd
from turbo_vaed.costs.money import AMOUNT_QUANTUM, time_usd
from turbo_vaed.errors import Unreachable, UserError


@given(
    st.lists(st.integers(0, 10**13), min_size=1, max_size=30),
    st.decimals(min_value=0, max_value=1000, places=6),
    st.integers(1, 64),
    st.booleans(),
)
@settings(deadline=None)
def test_slices_of_any_length_cost_the_same_to_the_last_digit(
    nanoseconds: list[int], price: Decimal, nodes: int, fails: bool
) -> None:
    ledger, clock = Memory(), Clock()
    start = clock.now
    try:
        with meter(ledger, clock=clock, usd_per_hour=price, count=nodes) as running:
            for step in nanoseconds[:-1]:
                clock.now += step
                running.cut()
            clock.now += nanoseconds[-1]
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    microseconds = clock.now // 1000 - start // 1000
    rows = ledger.rows
    assert total_usd(c.amount_usd for c in rows) == time_usd(microseconds * nodes, price)
    assert total_usd(c.quantity for c in rows) == Decimal(microseconds * nodes) / 1_000_000
    exact = Fraction(microseconds * nodes) * Fraction(price) / 3_600_000_000
    assert abs(Fraction(running.usd) - exact) <= Fraction(AMOUNT_QUANTUM) / 2
    wasted = total_usd(c.amount_usd for c in rows if c.useful == "wasted")
    assert wasted == (running.usd if fails else 0)
    slices = [c for c in rows if c.quantity > 0][: len(rows) - 2 if fails else None]
    for before, after in pairwise(slices):
        assert before.ended_at == after.started_at
        assert (
            before.quantity
            == nodes
            * Decimal((before.ended_at - before.started_at) // timedelta(microseconds=1))
            / 1_000_000
        )


def test_a_free_machine_is_metered_too() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock, usd_per_hour=Decimal(0)):
        clock.now += 10**9
    assert [(c.quantity, c.amount_usd) for c in ledger.rows] == [(Decimal(1), Decimal(0))]


def test_all_time_of_a_block_that_raises_is_wasted() -> None:
    ledger, clock = Memory(), Clock()
    with pytest.raises(ZeroDivisionError), meter(ledger, clock=clock) as running:
        clock.now += 1800 * 10**9
        running.cut()
        clock.now += 1800 * 10**9
        raise ZeroDivisionError
    reasons = {row.price_source for row in ledger.rows if row.useful == "wasted"}
    assert all("ZeroDivisionError" in reason for reason in reasons)
    kinds = {"useful": Decimal(0), "wasted": Decimal(0)}
    for row in ledger.rows:
        kinds[row.useful] += row.amount_usd
    assert kinds == {"useful": 0, "wasted": PRICE}
    assert len(ledger.rows) == 4


def test_unwritten_usd_is_what_the_ledger_lacks() -> None:
    ledger, clock = Memory(), Clock()
    with meter(ledger, clock=clock) as running:
        clock.now += 1800 * 10**9
        running.cut()
        clock.now += 900 * 10**9
        assert running.usd == Decimal("0.06")
        assert running.unwritten_usd() == Decimal("0.02")
    assert running.unwritten_usd() == 0


@pytest.mark.parametrize("keeps", [False, True])
def test_a_ledger_that_comes_back_gets_every_charge_once(
    keeps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Memory(3, keeps=keeps)
    with meter(ledger, interval_seconds=0.01) as running:
        deadline = time.monotonic() + 60
        while ledger.failures > -2 and time.monotonic() < deadline:
            time.sleep(0.01)
    rows = ledger.rows
    assert len(rows) > 4
    assert "took all of clip in the end" in caplog.text
    assert (
        total_usd(c.quantity for c in rows)
        == Decimal((rows[-1].ended_at - rows[0].started_at) // timedelta(microseconds=1))
        / 1_000_000
    )
    assert running.usd == total_usd(c.amount_usd for c in rows)
    assert running.unwritten_usd() == 0


def test_a_ledger_that_stays_away_is_an_error_at_the_end() -> None:
    with (
        pytest.raises(Unreachable, match="the ledger is gone"),
        meter(Memory(10**9), interval_seconds=0.01),
    ):
        time.sleep(0.1)


def test_an_error_of_the_block_is_raised_before_the_ledgers() -> None:
    with pytest.raises(ZeroDivisionError) as caught, meter(Memory(10**9)):
        raise ZeroDivisionError
    assert "did not take all charges of clip: the ledger is gone" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"usd_per_hour": 0.08},
        {"usd_per_hour": None},
        {"usd_per_hour": Decimal("NaN")},
        {"usd_per_hour": Decimal(-1)},
        {"count": 0},
        {"interval_seconds": 0.0},
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"meter: (usd_per_hour|nodes|interval)"):
        meter(Memory(), **changes)


CHILD = """
import sys, time
from decimal import Decimal
from turbo_vaed.costs import Ledger, Meter, PartlyPriced, Rate, steady
dear = Rate(resource="host", market="local", usd_per_hour=Decimal(3600), source="a test")
with Meter(Ledger.open(sys.argv[1]), run="r", customer="c", stage="s", nodes=steady(dear),
           interval_seconds=0.3):
    print("metering", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_loses_one_slice_at_most(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    child = subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "metering\n"
        ledger = Ledger.open(url)
        deadline = time.monotonic() + 90
        while len(ledger.charges()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed_at = datetime.now(UTC)
    rows = ledger.charges()
    assert len(rows) >= 3
    assert killed_at - rows[-1].ended_at < timedelta(seconds=0.3 + 10)  # on a busy machine
    for before, after in pairwise(rows):
        assert before.ended_at == after.started_at
    assert ledger.total() == total_usd(c.quantity for c in rows)  # a dollar a second


def test_a_clock_set_back_between_two_stages_neither_loses_nor_doubles_charges(
    tmp_path: Path,
) -> None:
    """What a stage takes is counted by a clock that never goes back; only its dates are wrong."""
    moments = (START, START - timedelta(hours=2), START - timedelta(seconds=30))
    clock = Clock()
    rate = Rate(resource="host", market="local", usd_per_hour=PRICE, source="a test")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        for moment in moments:
            with Meter(
                ledger,
                run="demo-1",
                customer="demo",
                stage="distill",
                nodes=steady(rate),
                interval_seconds=3600,
                clock=clock,
                now=lambda moment=moment: moment,  # type: ignore[misc]
            ):
                clock.now += 60 * 10**9
        charges = ledger.charges()
        assert ledger.total() == 3 * time_usd(60 * 10**6, PRICE)
    assert sorted(c.started_at for c in charges) == sorted(moments)
    assert all(c.ended_at - c.started_at == timedelta(seconds=60) for c in charges)
