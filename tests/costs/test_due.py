"""Charges that a ledger did not take are kept to the last digit and booked once."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.costs.charges import START, charge
from turbo_vaed.costs import Ledger, Meter, Rate, due, steady
from turbo_vaed.errors import CorruptFile, Unreachable


@given(
    micros=st.integers(1, 10**12),
    price=st.decimals("0", "1000", places=15),
    started=st.datetimes().map(lambda moment: START + timedelta(microseconds=moment.microsecond)),
)
def test_a_kept_charge_is_the_same_charge(micros: int, price: Decimal, started) -> None:
    one = charge(
        quantity=Decimal(micros).scaleb(-6),
        unit_price_usd=price,
        started_at=started,
        ended_at=started + timedelta(seconds=1),
    )
    assert due._charge(due._document(one)).key == one.key


def test_what_is_kept_is_booked_once_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "due"
    due.keep([charge(0), charge(15)], folder)
    due.keep([charge(15), charge(30)], folder)  # one that got through unnoticed
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert due.book(ledger, folder) == 3
        assert len(ledger.charges(run="demo-1")) == 3
        assert due.book(ledger, folder) == 0
    assert list(folder.iterdir()) == []


class Away:
    """A ledger that takes nothing."""

    def add_all(self, _charges: object) -> int:
        raise Unreachable("the ledger is gone")


def test_a_stage_that_ends_without_its_ledger_leaves_its_charges(tmp_path: Path) -> None:
    folder = tmp_path / "due"
    rate = Rate(resource="host", market="local", usd_per_hour=Decimal(3600), source="a test")
    with pytest.raises(Unreachable) as caught:  # noqa: SIM117
        with Meter(
            Away(), run="demo-1", customer="demo", stage="clip", nodes=steady(rate), due=folder
        ) as meter:  # type: ignore[arg-type]
            pass
    (note,) = caught.value.__notes__
    assert "are kept in" in note and "the next run books them" in note
    with pytest.raises(Unreachable):
        due.book(Away(), folder)  # type: ignore[arg-type]
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        due.book(ledger, folder)
        assert ledger.total(run="demo-1") == meter.usd > 0


def test_a_file_that_is_cut_is_named_and_stays(tmp_path: Path) -> None:
    path = due.keep([charge()], tmp_path / "due")
    path.write_text(path.read_text()[:50])
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:  # noqa: SIM117
        with pytest.raises(CorruptFile, match="book them by hand"):
            due.book(ledger, path.parent)
    assert path.exists()
