"""What the kill drill finds wrong in a ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.drills import paid
from tests.drills.paid import Life
from turbo_vaed.costs import Charge, Rate
from turbo_vaed.costs.meter import node_charge
from turbo_vaed.costs.waste import waste_corrections

BEGAN = datetime(2026, 12, 1, tzinfo=UTC)
RATE = Rate(resource="node", market="local", usd_per_hour=Decimal("3.6"), source="a test")


def charged(began: float, ended: float, machines: int = 3, stage: str = "distill") -> Charge:
    """From so many seconds on to so many."""
    return node_charge(
        RATE,
        Decimal(machines) * Decimal(str(ended - began)),
        run="one",
        customer="tiny",
        stage=stage,
        began=BEGAN + timedelta(seconds=began),
        ended=BEGAN + timedelta(seconds=ended),
    )


def lived(began: float, ended: float, *, is_killed: bool) -> Life:
    at = BEGAN.timestamp()
    return Life(stage="distill", began=at + began, ended=at + ended, is_killed=is_killed)


def test_every_machine_once_is_nothing_doubled() -> None:
    apart = [
        charged(0, 10),
        charged(10, 15),
        charged(15, 20, 1, "gate"),
        charged(15, 20, 2, "idle"),
    ]
    assert paid.doubled_seconds(apart, 3) == 0


def test_two_drivers_at_once_are_charged_twice() -> None:
    at_once = [charged(0, 10), charged(6, 20)]
    assert paid.doubled_seconds(at_once, 3) == pytest.approx(12, abs=0.01)


def test_a_machine_that_is_replaced_may_overlap_with_its_successor_for_a_while() -> None:
    at = BEGAN.timestamp()
    replaced = [charged(0, 30), charged(28, 40, 1)]
    assert paid.doubled_seconds(replaced, 3) == pytest.approx(2, abs=0.01)
    assert paid.doubled_seconds(replaced, 3, [at + 25]) == 0
    assert paid.doubled_seconds(replaced, 3, [at + 100]) == pytest.approx(2, abs=0.01)


def test_corrections_are_no_time_of_machines() -> None:
    charges = [charged(0, 10)]
    pairs = waste_corrections(charges, charges[0].started_at, charges[0].ended_at, "a test")
    assert pairs and paid.of_machines([*charges, *pairs]) == charges


def test_what_a_killed_process_had_not_written_is_lost() -> None:
    lives = [lived(0, 30, is_killed=True), lived(40, 80, is_killed=False)]
    assert paid.lost_seconds(lives, [charged(3, 27), charged(45, 79)]) == pytest.approx(3)


@pytest.mark.parametrize(
    "charges",
    [
        lambda: [charged(0, 40), charged(45, 100)],
        lambda: [charged(0, 70)],
        lambda: [charged(60, 100)],
        list,
        lambda: [charged(0, 100, stage="encode")],
    ],
    ids=["a gap", "its end", "its start", "all of it", "another stage's"],
)
def test_more_than_a_slice_that_is_missing_is_noticed(charges: Callable[[], list[Charge]]) -> None:
    with pytest.raises(AssertionError, match="is not charged"):
        paid.lost_seconds([lived(0, 100, is_killed=True)], charges())
