from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_vaed.costs import Charge, Ledger, Meter, PartlyPriced, Rate, steady, total_usd
from turbo_vaed.costs.money import AMOUNT_QUANTUM, time_usd
from turbo_vaed.errors import BudgetRefused, Unreachable, UserError

START = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
PRICE = Decimal("0.08")


class Clock:
    """Nanoseconds that move when the test says so."""

    def __init__(self, start: int = 123_456_789_012_345) -> None:
        self.now = start

    def __call__(self) -> int:
        return self.now


class Memory(Ledger):
    """Charges in a list; fails as often as it is told to, after or before it keeps them."""

    def __init__(self, failures: int = 0, *, keeps: bool = False) -> None:
        self.kept: dict[str, Charge] = {}
        self.failures, self.keeps = failures, keeps

    def add_all(self, charges: Iterable[Charge]) -> int:
        failing, self.failures = self.failures > 0, self.failures - 1
        if failing and not self.keeps:
            raise Unreachable("the ledger is gone")
        self.kept |= {charge.key: charge for charge in charges}
        if failing:
            raise Unreachable("the ledger took it and hung up")
        return 0

    def charges(self, *, run: str | None = None, customer: str | None = None) -> tuple[Charge, ...]:
        return tuple(c for c in self.kept.values() if c.run == run and c.customer == customer)

    @property
    def rows(self) -> list[Charge]:
        return list(self.kept.values())


def rate(usd_per_hour: Any = PRICE, resource: str = "host", **changes: Any) -> Rate:
    values: dict[str, Any] = {"market": "local", "source": "a test", **changes}
    return Rate(resource=resource, usd_per_hour=usd_per_hour, **values)


def meter(
    ledger: Ledger, usd_per_hour: Any = PRICE, count: int = 1, nodes: Any = None, **changes: Any
) -> Meter:
    values: dict[str, Any] = {
        "run": "demo-1",
        "customer": "demo",
        "stage": "clip",
        "nodes": nodes or steady(rate(usd_per_hour), count),
        "interval_seconds": 3600.0,
        "now": lambda: START,
    }
    return Meter(ledger, **{**values, **changes})


@given(
    st.lists(st.integers(0, 10**13), min_size=1, max_size=30),
    st.decimals(min_value=0, max_value=1000, places=6),
    st.integers(1, 64),
    st.booleans(),
)
@settings(deadline=None)
def test_any_split_costs_the_same_to_the_last_digit(
    nanoseconds: list[int], price: Decimal, nodes: int, fails: bool
) -> None:
    ledger, clock = Memory(), Clock()
    began = clock.now
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
    microseconds = clock.now // 1000 - began // 1000
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


def test_a_block_that_raises_is_wasted_altogether() -> None:
    ledger, clock = Memory(), Clock()
    with pytest.raises(ZeroDivisionError), meter(ledger, clock=clock) as running:
        clock.now += 1800 * 10**9
        running.cut()
        clock.now += 1800 * 10**9
        raise ZeroDivisionError
    kinds = {"useful": Decimal(0), "wasted": Decimal(0)}
    for row in ledger.rows:
        kinds[row.useful] += row.amount_usd
    assert kinds == {"useful": 0, "wasted": PRICE}
    assert len(ledger.rows) == 4


def test_what_the_ledger_does_not_have_yet() -> None:
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


def test_the_blocks_own_error_comes_first() -> None:
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


# --- machines that come and go --------------------------------------------------------------------


def spot(usd_per_hour: str, resource: str = "g6.xlarge") -> Rate:
    return rate(Decimal(usd_per_hour), resource, market="spot", minimum_seconds=60)


def by_resource(rows: list[Charge]) -> dict[str, tuple[Decimal, Decimal]]:
    """Node-seconds and USD of each, wasted or not."""
    return {
        name: (
            total_usd(c.quantity for c in rows if c.resource == name),
            total_usd(c.amount_usd for c in rows if c.resource == name),
        )
        for name in {c.resource for c in rows}
    }


def test_every_node_is_charged_at_its_own_rate() -> None:
    ledger, clock = Memory(), Clock()
    held = {"a": spot("0.36"), "b": spot("0.36"), "head": rate(Decimal("0.1"), "t3.small")}
    with meter(ledger, clock=clock, nodes=lambda: held) as running:
        clock.now += 3600 * 10**9
        assert running.usd == Decimal("0.82")
        assert running.usd_per_hour() == Decimal("0.82")
    assert by_resource(ledger.rows) == {
        "g6.xlarge": (7200, Decimal("0.72")),
        "t3.small": (3600, Decimal("0.1")),
    }
    assert len(ledger.rows) == 2, "nodes at one rate share a charge"


def test_nodes_are_charged_from_joining_to_leaving() -> None:
    ledger, clock = Memory(), Clock()
    held = {"a": spot("36", "a")}
    with meter(ledger, clock=clock, nodes=lambda: dict(held)) as running:
        clock.now += 100 * 10**9
        running.cut()
        held["b"] = spot("72", "b")  # joins within the next slice
        clock.now += 10 * 10**9
        running.cut()
        clock.now += 100 * 10**9
        del held["a"]  # leaves within this one
        running.cut()
        clock.now += 90 * 10**9
    assert by_resource(ledger.rows) == {
        "a": (210, Decimal("2.1")),
        "b": (200, Decimal(4)),
    }
    assert all(c.useful == "useful" for c in ledger.rows)


def test_a_node_that_is_gone_within_the_minimum_costs_the_rest_of_it() -> None:
    ledger, clock = Memory(), Clock()
    held = {"old": spot("36", "old")}
    with meter(ledger, clock=clock, nodes=lambda: dict(held)) as running:
        clock.now += 5 * 10**9
        held["brief"] = spot("72", "brief")
        running.cut()
        clock.now += 15 * 10**9
        held.clear()
        running.cut()
        running.cut()
        assert running.usd == Decimal("0.2") + Decimal("1.2")
    assert by_resource(ledger.rows) == {"old": (20, Decimal("0.2")), "brief": (60, Decimal("1.2"))}
    (rest,) = [c for c in ledger.rows if c.useful == "wasted"]
    assert (rest.resource, rest.quantity, rest.amount_usd) == ("brief", 40, Decimal("0.8"))
    assert rest.price_source == "a test; minimum of 60 s"


def test_a_new_price_counts_from_the_slice_that_sees_it() -> None:
    ledger, clock = Memory(), Clock()
    held = {"a": spot("36")}
    with meter(ledger, clock=clock, nodes=lambda: dict(held)) as running:
        clock.now += 10 * 10**9
        held["a"] = spot("360")
        running.cut()
        clock.now += 10 * 10**9
    assert [(c.quantity, c.amount_usd) for c in ledger.rows] == [(10, Decimal("0.1")), (10, 1)]


def test_a_cluster_that_does_not_answer_goes_on_being_charged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, clock, fails = Memory(), Clock(), [False]

    def nodes() -> dict[str, Rate]:
        if fails[0]:
            raise ConnectionError("the head is gone")
        return {"a": spot("36")}

    with meter(ledger, clock=clock, nodes=nodes) as running:
        fails[0] = True
        clock.now += 10 * 10**9
        running.cut()
        clock.now += 10 * 10**9
    assert total_usd(c.quantity for c in ledger.rows) == 20
    assert "nodes of clip are not known, the last ones count: the head is gone" in caplog.text


def test_nodes_that_have_a_price_are_charged_beside_one_that_has_none() -> None:
    ledger, clock, joined = Memory(), Clock(), [False]

    def nodes() -> dict[str, Rate]:
        known = {"a": spot("36")}
        if not joined[0]:
            return known
        raise PartlyPriced("node c bears no labels", known | {"b": spot("36")})

    with meter(ledger, clock=clock, nodes=nodes) as running:
        clock.now += 10 * 10**9
        running.cut()
        joined[0] = True
        clock.now += 10 * 10**9
        running.cut()
        clock.now += 10 * 10**9
    assert total_usd(c.quantity for c in ledger.rows) == 10 + 20 + 20


def test_the_source_of_a_price_is_cut_to_what_a_ledger_keeps(tmp_path: Path) -> None:
    clock, held = Clock(), {}
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        long = rate(Decimal(36), source="x" * 999, minimum_seconds=60)
        with meter(ledger, clock=clock, nodes=lambda: dict(held)) as running:
            clock.now += 10**9
            held["a"] = long
            running.cut()
            clock.now += 10**9
            held.clear()
        sources = {c.price_source for c in ledger.charges()}
    assert {len(source) for source in sources} == {400}
    assert any(source.endswith("x; minimum of 60 s") for source in sources)


def test_nothing_runs_where_the_price_is_not_known_at_the_start() -> None:
    def nodes() -> dict[str, Rate]:
        raise BudgetRefused("no price")

    with pytest.raises(BudgetRefused, match="no price"), meter(Memory(), nodes=nodes):
        pytest.fail("the block was entered")


looks = st.lists(
    st.tuples(
        st.integers(0, 10**11),
        st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["0.1", "0.37", "12"])),
    ),
    min_size=1,
    max_size=12,
)


@given(looks)
@settings(deadline=None)
def test_whatever_comes_and_goes_the_rows_add_up_to_what_the_meter_says(
    looks: list[tuple[int, dict[str, str]]],
) -> None:
    ledger, clock, held = Memory(), Clock(), {"a": spot("0.1", "x")}
    with meter(ledger, clock=clock, nodes=lambda: dict(held)) as running:
        for nanoseconds, found in looks:
            clock.now += nanoseconds
            held.clear()
            held.update({node: spot(usd, f"at {usd}") for node, usd in found.items()})
            running.cut()
    assert running.usd == total_usd(c.amount_usd for c in ledger.rows)
    assert all(c.amount_usd >= 0 and c.quantity >= 0 for c in ledger.rows)
    for name, (seconds, usd) in by_resource(ledger.rows).items():
        price = Decimal(name.split()[-1]) if name != "x" else Decimal("0.1")
        assert abs(Fraction(usd) - Fraction(seconds) * Fraction(price) / 3600) < Fraction(1, 10**11)


def test_a_clock_that_is_set_back_between_two_stages_loses_and_doubles_nothing(
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
