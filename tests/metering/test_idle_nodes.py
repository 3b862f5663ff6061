"""A cluster's nodes cost money while no stage runs on them, too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.costs.charges import START, charge
from turbo_vaed.costs import Ledger, PartlyPriced, Rate, total_usd
from turbo_vaed.errors import Unreachable
from turbo_vaed.metering.idle_nodes import (
    Moment,
    charge_idle_nodes,
    start_tracking,
    this_moment,
    tracked,
    without_node,
)

SPOT = Rate(resource="g6.xlarge", market="spot", usd_per_hour=Decimal("3.6"), source="a list")
HEAD = Rate(resource="node", market="local", usd_per_hour=Decimal("0.36"), source="a list")
RUN = {"run": "demo-1", "customer": "demo"}


def after(seconds: float, *, set_forward: float = 0, boot: str = "first") -> Moment:
    return Moment(
        at=START + timedelta(seconds=seconds + set_forward), boot=boot, since_boot=1000 + seconds
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two spot machines and the head, seen at START."""
    found = tmp_path / "work" / "nodes.json"
    nodes = {"a": SPOT, "b": SPOT, "head": HEAD}
    look = tracked(lambda: nodes, found, run="demo-1", now=lambda: after(0))
    assert look() == nodes
    return found


def test_idle_nodes_are_charged_once(ledger: Ledger, path: Path) -> None:
    """A minute and a half of all three. The one that came since is charged by who first saw it."""
    nodes = {"a": SPOT, "b": SPOT, "head": HEAD, "new": SPOT}
    found = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: after(90))
    assert [(c.resource, c.market, c.quantity, c.useful) for c in found] == [
        ("g6.xlarge", "spot", Decimal(180), "useful"),
        ("node", "local", Decimal(90), "useful"),
    ]
    assert total_usd(c.amount_usd for c in found) == pytest.approx(Decimal("0.189"))
    assert {c.stage for c in ledger.charges()} == {"waiting"}
    assert charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: after(90)) == []
    (rest, _) = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: after(91))
    assert rest.quantity == Decimal(2), "from where the last charge ended"


def test_a_node_that_is_gone_is_not_charged(ledger: Ledger, path: Path) -> None:
    (found,) = charge_idle_nodes(ledger, lambda: {"b": SPOT}, path, **RUN, now=lambda: after(90))
    assert found.quantity == Decimal(90)


def test_idle_time_after_a_lost_driver_is_wasted(ledger: Ledger, path: Path) -> None:
    """The run goes on, with whatever stage. The wait begins where the driver's last slice ended, a
    little after its last look; what comes after it, is useful again."""
    ledger.add(charge(stage="distill", resource="g6.xlarge", market="spot"))  # 15 s from START on
    nodes = {"a": SPOT}
    start_tracking(ledger, lambda: nodes, path, **RUN, now=lambda: after(75))
    (found,) = (one for one in ledger.charges() if one.stage == "waiting")
    assert (found.useful, found.quantity) == ("wasted", Decimal(60))
    (then,) = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: after(80))
    assert (then.useful, then.quantity) == ("useful", Decimal(5))


def test_nodes_of_another_run_are_not_charged(ledger: Ledger, path: Path) -> None:
    other = {"run": "demo-2", "customer": "demo"}
    assert charge_idle_nodes(ledger, lambda: {"a": SPOT}, path, **other, now=lambda: after(9)) == []
    path.write_text("{cut short")
    assert charge_idle_nodes(ledger, lambda: {"a": SPOT}, path, **RUN, now=lambda: after(9)) == []


def test_a_changed_wall_clock_does_not_change_idle_time(ledger: Ledger, path: Path) -> None:
    """A year forward while a minute went by, then back again."""
    nodes, year = {"a": SPOT}, 365 * 86400.0
    for seconds, set_forward in ((60, year), (120, 0), (180, -year)):
        now = after(seconds, set_forward=set_forward)
        found = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda now=now: now)
        assert [c.quantity for c in found] == [Decimal(60)]
        assert found[0].ended_at == now.at


def test_after_a_reboot_the_wall_clock_counts(ledger: Ledger, path: Path) -> None:
    nodes = {"a": SPOT}
    back = after(-60, boot="second")
    assert charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: back) == []
    (found,) = charge_idle_nodes(
        ledger, lambda: nodes, path, **RUN, now=lambda: after(0, boot="third")
    )
    assert found.quantity == Decimal(60), "as long as the clock says since"


def test_both_clocks_of_this_machine_are_read() -> None:
    first, second = this_moment(), this_moment()
    assert first.boot == second.boot != "" and 0 < first.since_boot <= second.since_boot
    assert abs(datetime.now(UTC) - second.at) < timedelta(minutes=1)


def test_local_stages_do_not_shorten_other_nodes_idle_time(ledger: Ledger, path: Path) -> None:
    """Ten minutes of two spot machines, on one of which the gate ran and was charged for."""
    gate = charge(30, stage="gate", resource="g6.xlarge", market="spot", quantity=Decimal(500),
                  ended_at=after(530).at)  # fmt: skip
    ledger.add(gate)
    nodes = {"a": SPOT, "b": SPOT}
    times = {"now": lambda: after(600)}
    (found,) = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, own_node="a", **times)
    assert found.quantity == Decimal(2 * 600 - 500)


def test_a_driver_outside_the_cluster_is_not_charged_as_a_node(ledger: Ledger, path: Path) -> None:
    ledger.add(
        charge(0, stage="gate", resource="node", quantity=Decimal(90), ended_at=after(90).at)
    )
    (found,) = charge_idle_nodes(ledger, lambda: {"head": HEAD}, path, **RUN, now=lambda: after(90))
    assert found.quantity == Decimal(90)


def test_a_node_without_a_price_does_not_keep_others_from_being_charged(
    ledger: Ledger, path: Path
) -> None:
    def nodes() -> dict[str, Rate]:
        raise PartlyPriced("b is of an unknown type", {"a": SPOT})

    (found,) = charge_idle_nodes(ledger, nodes, path, **RUN, now=lambda: after(90))
    assert found.quantity == Decimal(90)


def test_idle_time_begins_before_the_first_stage(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    start_tracking(ledger, lambda: {"a": SPOT}, path, **RUN, now=lambda: after(0))
    assert ledger.charges() == ()
    nodes = {"a": SPOT, "b": SPOT}
    (found,) = charge_idle_nodes(ledger, lambda: nodes, path, **RUN, now=lambda: after(60))
    assert (found.quantity, found.useful) == (Decimal(60), "useful")


def test_nodes_that_cannot_be_listed_are_charged_by_the_next_meter(
    ledger: Ledger, path: Path
) -> None:
    """The child that looks was killed: its record stays, and the nodes with it."""

    def unseen() -> dict[str, Rate]:
        raise Unreachable("nobody sees them")

    look = without_node(tracked(unseen, path, run="demo-1", now=lambda: after(30)), "head")
    assert look() == {}
    (found,) = charge_idle_nodes(ledger, lambda: {"a": SPOT}, path, **RUN, now=lambda: after(90))
    assert found.quantity == Decimal(90), "from when they were seen last"
