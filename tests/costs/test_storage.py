"""What it costs to keep bytes, and what of a customer's files is charged."""

from __future__ import annotations

import dataclasses
import os
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.costs import Ledger
from turbo_vaed.costs.storage import storage_charge
from turbo_vaed.errors import UserError
from turbo_vaed.poc import Poc
from turbo_vaed.stages.storage import book_storage

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def charge(size_bytes: int, days: float, usd: str = "0.02") -> Any:
    span = timedelta(days=days)
    return storage_charge(
        run="r", customer="c", stage="clip", resource="disk",
        byte_microseconds=size_bytes * (span // timedelta(microseconds=1)), since=NOON,
        until=NOON + span, usd_per_gb_month=Decimal(usd), price_source="a test",
    )  # fmt: skip


def test_a_gigabyte_for_a_month() -> None:
    found = charge(10**9, 30)
    assert (found.quantity, found.unit, found.amount_usd) == (1, "GB-month", Decimal("0.02"))
    assert charge(5 * 10**9, 3).amount_usd == Decimal("0.01")
    for size, days, usd in ((-1, 1, "0"), (1, -1, "0"), (1, 1, "-1")):
        with pytest.raises(UserError, match="expected none of them negative"):
            charge(size, days, usd)


@given(st.integers(0, 10**15), st.floats(0, 3650), st.decimals(0, 100, places=6))
def test_any_size_and_time_is_a_charge_to_the_last_digit(
    size: int, days: float, usd: Decimal
) -> None:
    found = charge(size, days, str(usd))
    exact = Decimal(size) / 10**9 * Decimal((found.ended_at - found.started_at).total_seconds())
    exact = exact / (30 * 86400) * usd
    assert abs(found.amount_usd - exact) < Decimal("1e-9") + exact * Decimal("1e-15")


def test_what_a_run_kept_is_charged_once_and_only_for_its_own_time(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "params.yaml", tmp_path)
    poc = Poc.load(tmp_path, "demo")
    prices = dataclasses.replace(poc.params.prices, storage_usd_per_gb_month=Decimal(720))
    poc = dataclasses.replace(poc, params=dataclasses.replace(poc.params, prices=prices))
    files = (("clip", "a", -5), ("targets", "a", 1), ("targets", "b", 2), ("report", "a", 0))
    for folder, name, hours in files:
        path = poc.work / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10**6))
        written = (NOON + timedelta(hours=hours)).timestamp()
        os.utime(path, (written, written))
    ended = NOON + timedelta(hours=3)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        book = partial(book_storage, poc, ledger, run="demo-1", began=NOON)
        assert book(ended=ended) == Decimal("0.006"), "a dollar per GB and hour: 3 hours, 2 and 1"
        assert book(ended=ended) == 0
        assert book(ended=ended + timedelta(hours=1)) == Decimal("0.003"), "a second try"
        rows = ledger.charges()
    assert [(c.stage, c.resource, c.amount_usd) for c in rows] == [
        ("clip", "disk (clip)", Decimal("0.003")),
        ("distill", "disk (targets)", Decimal("0.003")),
        ("clip", "disk (clip)", Decimal("0.001")),
        ("distill", "disk (targets)", Decimal("0.002")),
    ]
