"""What it costs to keep bytes, and what of a customer's files is charged."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import configs
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.storage import storage_charge
from turbo_vaed.costs.transfer import transfer_charge
from turbo_vaed.errors import UserError
from turbo_vaed.metering.storage_charges import charge_storage
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def charge(size_bytes: int, days: float, usd: str = "0.02") -> Any:
    span = timedelta(days=days)
    return storage_charge(
        run="r", customer="c", stage="clip", resource="disk",
        byte_microseconds=size_bytes * (span // timedelta(microseconds=1)), since=NOON,
        until=NOON + span, usd_per_gb_month=Decimal(usd), price_source="a test",
    )  # fmt: skip


def test_the_price_of_a_gigabyte_for_a_month() -> None:
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


def test_the_storage_of_a_run_is_charged_once_and_for_its_own_time(tmp_path: Path) -> None:
    configs.copy_to(tmp_path)
    workspace = Workspace.load(tmp_path, "demo")
    prices = dataclasses.replace(workspace.params.prices, storage_usd_per_gb_month=Decimal(720))
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, prices=prices)
    )
    files = (("clip", "a", -5), ("targets", "a", 1), ("targets", "b", 2), ("report", "a", 0))
    for folder, name, hours in files:
        path = workspace.work / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10**6))
        written = (NOON + timedelta(hours=hours)).timestamp()
        os.utime(path, (written, written))
    ended = NOON + timedelta(hours=3)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        settings = Settings.from_environment(tmp_path)
        book = partial(charge_storage, workspace, ledger, settings, run="demo-1", began=NOON)
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


def test_checkpoints_in_a_bucket_and_downloads_from_it_are_charged(
    tmp_path: Path,
) -> None:
    """A GB for two hours at a dollar an hour; it was read by two workers. Nothing comes twice."""
    configs.copy_to(tmp_path)
    workspace = Workspace.load(tmp_path, "demo")
    prices = dataclasses.replace(
        workspace.params.prices,
        storage_usd_per_gb_month=Decimal(0),
        bucket_usd_per_gb_month=Decimal(720),
        transfer_out_usd_per_gb=Decimal("0.09"),
    )
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, prices=prices)
    )
    hour, start = NOON.timestamp() + 3600, {"event": "start", "world": 2, "checkpoint": None}
    events: list[dict[str, Any]] = [
        {**start, "at": NOON.timestamp()},
        {"event": "checkpoint", "at": hour, "step": 1, "name": "1.pt", "bytes": 10**9},
        {**start, "at": hour + 1800, "checkpoint": "1.pt"},
    ]
    workspace.progress_file.parent.mkdir(parents=True)
    workspace.progress_file.write_text("".join(json.dumps(event) + "\n" for event in events))
    settings = Settings.from_environment(tmp_path)
    in_s3 = dataclasses.replace(settings, checkpoints_url="s3://bucket/of-checkpoints")
    on_ec2 = dataclasses.replace(in_s3, machine={"turbo-vaed.io/instance-type": "g6.xlarge"})
    ended = NOON + timedelta(hours=3)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        book = partial(charge_storage, workspace, ledger, began=NOON)
        assert book(settings, run="demo-1", ended=ended) == 0, "a folder costs nothing here"
        assert [c.resource for c in ledger.charges(run="demo-1")] == ["disk (checkpoints)"]
        assert book(on_ec2, run="demo-2", ended=ended) == 2, "within AWS nothing is fetched out"
        assert book(in_s3, run="demo-3", ended=ended) == Decimal("2.18")
        assert book(in_s3, run="demo-3", ended=ended) == 0
        assert book(in_s3, run="demo-3", ended=ended + timedelta(hours=1)) == 1
        names = [(c.resource, c.unit, c.quantity) for c in ledger.charges(run="demo-3")]
        assert ("transfer (checkpoints)", "GB", 2) in names
        assert [name for name, _, _ in names].count("bucket (checkpoints)") == 2
        late = charge_storage(
            workspace, ledger, in_s3, run="demo-4", began=ended, ended=ended + timedelta(hours=1)
        )
        assert late == 1, "an earlier run's, from this one's beginning; fetched before it"


def test_a_negative_transfer_is_refused() -> None:
    for size, usd in ((-1, "0.09"), (1, "-0.09")):
        with pytest.raises(UserError, match="neither may be negative"):
            transfer_charge(
                run="r", customer="c", stage="s", what="w", size_bytes=size, began=NOON,
                ended=NOON, usd_per_gb=Decimal(usd),
            )  # fmt: skip
