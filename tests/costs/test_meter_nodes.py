"""Nodes that come and go, each at its own rate."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.costs.metered import Clock, Memory, meter, rate
from turbo_vaed.costs import Charge, Ledger, PartlyPriced, Rate, total_usd
from turbo_vaed.errors import BudgetRefused


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
    nodes = {"a": spot("0.36"), "b": spot("0.36"), "head": rate(Decimal("0.1"), "t3.small")}
    with meter(ledger, clock=clock, nodes=lambda: nodes) as running:
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
    nodes = {"a": spot("36", "a")}
    with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
        clock.now += 100 * 10**9
        running.cut()
        nodes["b"] = spot("72", "b")  # joins within the next slice
        clock.now += 10 * 10**9
        running.cut()
        clock.now += 100 * 10**9
        del nodes["a"]  # leaves within this one
        running.cut()
        clock.now += 90 * 10**9
    assert by_resource(ledger.rows) == {
        "a": (210, Decimal("2.1")),
        "b": (200, Decimal(4)),
    }
    assert all(c.useful == "useful" for c in ledger.rows)


def test_a_node_that_is_gone_within_the_minimum_costs_the_rest_of_it() -> None:
    ledger, clock = Memory(), Clock()
    nodes = {"old": spot("36", "old")}
    with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
        clock.now += 5 * 10**9
        nodes["brief"] = spot("72", "brief")
        running.cut()
        clock.now += 15 * 10**9
        nodes.clear()
        running.cut()
        running.cut()
        assert running.usd == Decimal("0.2") + Decimal("1.2")
    assert by_resource(ledger.rows) == {"old": (20, Decimal("0.2")), "brief": (60, Decimal("1.2"))}
    (rest,) = [c for c in ledger.rows if c.useful == "wasted"]
    assert (rest.resource, rest.quantity, rest.amount_usd) == ("brief", 40, Decimal("0.8"))
    assert rest.price_source == "a test; minimum of 60 s"


def test_each_node_that_is_gone_costs_its_own_minimum() -> None:
    """Of two at one rate, which joined at different moments and leave together."""
    ledger, clock = Memory(), Clock()
    nodes = {"old": rate(Decimal(36), "old")}
    with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
        for name in ("first", "second"):
            clock.now += 10 * 10**9
            running.cut()  # a node is charged from the cut before it was seen
            nodes[name] = spot("72")
            clock.now += 10 * 10**9
            running.cut()
        nodes = {"old": nodes["old"]}
        running.cut()
        clock.now += 5 * 10**9
        running.cut()
    rests = [c.quantity for c in ledger.rows if c.useful == "wasted"]
    # Since its first cut: 35 s, one of them after it was last seen; 15 s.
    assert rests == [Decimal(60 - 35) + Decimal(60 - 15)]


def test_a_new_price_counts_from_the_slice_that_sees_it() -> None:
    ledger, clock = Memory(), Clock()
    nodes = {"a": spot("36")}
    with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
        clock.now += 10 * 10**9
        nodes["a"] = spot("360")
        running.cut()
        clock.now += 10 * 10**9
    assert [(c.quantity, c.amount_usd) for c in ledger.rows] == [(10, Decimal("0.1")), (10, 1)]


def test_a_cluster_that_does_not_answer_is_still_charged(
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
    assert "cannot list the nodes of stage clip" in caplog.text
    assert "the head is gone" in caplog.text


def test_nodes_with_a_price_are_charged_next_to_one_without() -> None:
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


def test_a_long_price_source_is_cut_to_the_ledgers_length(tmp_path: Path) -> None:
    clock, nodes = Clock(), {}
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        long = rate(Decimal(36), source="x" * 999, minimum_seconds=60)
        with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
            clock.now += 10**9
            nodes["a"] = long
            running.cut()
            clock.now += 10**9
            nodes.clear()
        sources = {c.price_source for c in ledger.charges()}
    assert {len(source) for source in sources} == {400}
    assert any(source.endswith("x; minimum of 60 s") for source in sources)


def test_a_stage_whose_price_is_unknown_at_the_start_does_not_run() -> None:
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
def test_rows_add_up_to_the_meters_total_whatever_nodes_come_and_go(
    looks: list[tuple[int, dict[str, str]]],
) -> None:
    ledger, clock, nodes = Memory(), Clock(), {"a": spot("0.1", "x")}
    with meter(ledger, clock=clock, nodes=lambda: dict(nodes)) as running:
        for nanoseconds, found in looks:
            clock.now += nanoseconds
            nodes.clear()
            nodes.update({node: spot(usd, f"at {usd}") for node, usd in found.items()})
            running.cut()
    assert running.usd == total_usd(c.amount_usd for c in ledger.rows)
    assert all(c.amount_usd >= 0 and c.quantity >= 0 for c in ledger.rows)
    for name, (seconds, usd) in by_resource(ledger.rows).items():
        price = Decimal(name.split()[-1]) if name != "x" else Decimal("0.1")
        assert abs(Fraction(usd) - Fraction(seconds) * Fraction(price) / 3600) < Fraction(1, 10**11)
