"""Charges that a ledger did not take are stored exactly and posted once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.costs.charges import START, charge
from tests.costs.metered import Clock, Memory, meter
from turbo_vaed.costs import Ledger, outbox, total_usd
from turbo_vaed.errors import CorruptFile, Unreachable


@given(
    micros=st.integers(1, 10**12),
    price=st.decimals("0", "1000", places=15),
    started=st.datetimes().map(lambda moment: START + timedelta(microseconds=moment.microsecond)),
)
def test_a_stored_charge_is_the_same_charge(micros: int, price: Decimal, started) -> None:
    one = charge(
        quantity=Decimal(micros).scaleb(-6),
        unit_price_usd=price,
        started_at=started,
        ended_at=started + timedelta(seconds=1),
    )
    assert outbox._charge(outbox._document(one)).key == one.key


def test_stored_charges_are_posted_once_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    outbox.store([charge(0), charge(15)], folder)
    outbox.store([charge(15), charge(30)], folder)  # one that got through unnoticed
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert outbox.post(ledger, folder) == 3
        assert len(ledger.charges(run="demo-1")) == 3
        assert outbox.post(ledger, folder) == 0
    assert list(folder.iterdir()) == []


def test_posting_goes_on_past_a_file_replaced_by_its_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed, and gone when it is read: a newer file, or the ledger, has all that was in it."""
    folder = tmp_path / "outbox"
    gone = outbox.store([charge(0)], folder)
    outbox.store([charge(0), charge(15)], folder)
    listed = sorted(folder.glob("*.jsonl"))
    gone.unlink()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        assert outbox.post(ledger, folder) == 2


class Away:
    """A ledger that takes nothing."""

    def add_all(self, _charges: object) -> int:
        raise Unreachable("the ledger is gone")


AWAY = 10**9
"""So many times a `Memory` takes nothing."""


def posted(folder: Path, database: Path) -> Decimal:
    """What the next run posts, in all."""
    with Ledger.open(f"sqlite:///{database}") as ledger:
        outbox.post(ledger, folder)
        assert not list(folder.iterdir())
        return ledger.total(run="demo-1")


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stage_without_its_ledger_succeeds_and_leaves_its_charges_pending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, clock = tmp_path / "outbox", Clock()
    with meter(Memory(AWAY), clock=clock, outbox=folder) as running:
        clock.now += 3600 * 10**9
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    (path,) = folder.iterdir()
    assert "$0.08" in error.message and str(path) in error.message
    with pytest.raises(Unreachable):
        outbox.post(Away(), folder)  # type: ignore[arg-type]
    assert posted(folder, tmp_path / "ledger.db") == running.usd == Decimal("0.08")


def test_a_stage_that_fails_without_its_ledger_leaves_wasted_charges_pending(
    tmp_path: Path,
) -> None:
    folder, clock = tmp_path / "outbox", Clock()
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: SIM117
        with meter(Memory(AWAY), clock=clock, outbox=folder):
            clock.now += 3600 * 10**9
            raise ZeroDivisionError
    missed, stored = caught.value.__notes__
    assert "the ledger is gone" in missed and str(folder) in stored
    ledger = Memory()
    outbox.post(ledger, folder)
    wasted = [row.amount_usd for row in ledger.rows if row.useful == "wasted"]
    assert total_usd(wasted) == Decimal("0.08")


def test_pending_charges_are_in_one_file_until_the_ledger_is_reachable(
    tmp_path: Path,
) -> None:
    folder, ledger = tmp_path / "outbox", Memory(AWAY)
    with meter(ledger, interval_seconds=0.01, outbox=folder):
        wait_for(lambda: len(list(folder.glob("*.jsonl"))) == 1 and ledger.failures < AWAY - 9)
        ledger.failures = 0
        wait_for(lambda: ledger.kept and not list(folder.iterdir()))
    assert not list(folder.iterdir())
    assert len(ledger.kept) > 9


CHILD = """
import sys, time
from decimal import Decimal
from pathlib import Path
from tests.costs.metered import Memory, meter
with meter(Memory(10**9), Decimal(3600), interval_seconds=0.1, outbox=Path(sys.argv[1])):
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_process_killed_without_its_ledger_loses_one_slice_at_most(
    tmp_path: Path,
) -> None:
    """A dollar a second."""
    folder = tmp_path / "outbox"
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)])
    try:
        wait_for(lambda: list(folder.glob("*.jsonl")))
        metered_from = time.monotonic()
        time.sleep(2)
        least = time.monotonic() - metered_from
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        most = time.monotonic() - start
    for partial in folder.glob("*.partial"):  # it was killed while it wrote
        partial.unlink()
    assert least - 1 < posted(folder, tmp_path / "ledger.db") < most


@pytest.mark.parametrize("fails", [False, True])
def test_charges_that_cannot_be_stored_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    (tmp_path / "outbox").touch()  # no folder can be made there
    clock = Clock()
    error = ZeroDivisionError if fails else Unreachable
    with pytest.raises(error) as caught:  # noqa: SIM117
        with meter(Memory(AWAY), clock=clock, outbox=tmp_path / "outbox"):
            clock.now += 3600 * 10**9
            if fails:
                raise ZeroDivisionError
    assert "$0.08" in caught.value.__notes__[-1]
    printed = [outbox._charge(json.loads(line)) for line in capsys.readouterr().err.splitlines()]
    assert total_usd(one.amount_usd for one in printed) == Decimal("0.08")
    assert {one.useful for one in printed} == ({"useful", "wasted"} if fails else {"useful"})


def test_a_truncated_outbox_file_is_named_and_kept(tmp_path: Path) -> None:
    path = outbox.store([charge()], tmp_path / "outbox")
    path.write_text(path.read_text()[:50])
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:  # noqa: SIM117
        with pytest.raises(CorruptFile, match=path.name):
            outbox.post(ledger, path.parent)
    assert path.exists()
