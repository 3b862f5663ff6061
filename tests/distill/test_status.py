"""What a person is told of a run in flight, or of the last one, from its progress file alone."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from turbo_vaed.distill.status import FRESH_SECONDS, Status, read_status
from turbo_vaed.errors import CorruptFile, UserError

T0 = 1_763_800_000.0
OPEN = {"event": "open", "at": T0, "job": "a", "steps": 500, "usd_per_hour": "0.36"}


def start(at: float, resumed_from: int | None = None, world: int = 2) -> dict[str, Any]:
    return {"event": "start", "at": T0 + at, "world": world, "resumed_from": resumed_from,
            "device": "cpu", "precision": "bf16", "compiled": False}  # fmt: skip


def step(number: int, at: float, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "at": T0 + at, "loss": 1 / number,
            "spent_usd": f"{0.0001 * at:.8f}", **more}  # fmt: skip


LIVE = [
    OPEN,
    start(10),
    *(step(n, 10 + n) for n in range(1, 40)),
    step(40, 50, val_psnr=31.2),
    {"event": "checkpoint", "step": 40, "at": T0 + 51, "name": "x", "bytes": 1, "seconds": 0.1},
    *(step(n, 11 + n) for n in range(41, 48)),
    start(70.3, resumed_from=40, world=1),
    *(step(n, 30 + n) for n in range(41, 60)),
    step(60, 90, val_psnr=31.6),
    {"event": "warning", "step": 60, "at": T0 + 90, "kind": "flicker", "text": "every 4 frames"},
    *(step(n, 30 + n) for n in range(61, 80)),
    step(80, 110, val_psnr=31.4),
]


def read(tmp_path: Path, events: list[dict[str, Any]], after: float = 5.0) -> Status:
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return read_status(path, customer="acme", now=events[-1]["at"] + after)


def test_a_run_in_flight(tmp_path: Path) -> None:
    found = read(tmp_path, LIVE)
    assert (found.customer, found.state, found.step, found.steps) == ("acme", "running", 80, 500)
    assert found.loss == 1 / 80
    assert (found.val_psnr, found.best_val_psnr, found.best_step) == (31.4, 31.6, 60)
    assert found.spent_usd == Decimal("0.011")
    assert found.usd_per_tenth_db == pytest.approx(Decimal("0.0015"))  # 0.4 dB from 50 s to 110 s
    assert found.seconds_left == pytest.approx(420)
    assert found.workers == 1
    assert (found.checkpoint_step, found.checkpoint_age_seconds) == (40, 64)
    assert (found.restarts, found.lost_steps) == (1, 7)
    assert found.wasted_seconds == pytest.approx(20.3)
    assert found.wasted_usd == pytest.approx(Decimal("0.00203"))
    assert found.warnings == ("step 60, flicker: every 4 frames",)


def test_as_a_table_and_as_json(tmp_path: Path) -> None:
    found = read(tmp_path, LIVE)
    assert {row["what"]: row["value"] for row in found.rows()} == {
        "state": "running", "step": "80 of 500", "loss": "0.0125", "validation": "31.40 dB",
        "best": "31.60 dB at step 60", "spent by the run": "$0.011", "per 0.1 dB": "$0.0015",
        "time left": "7:00", "workers": "1", "last checkpoint": "step 40, 1:04 ago",
        "restarts": "1: 7 steps again, 20.3 s, $0.00203 wasted",
        "warnings": "step 60, flicker: every 4 frames",
    }  # fmt: skip
    document = json.loads(json.dumps(found.document()))
    assert document["spent_usd"] == "0.011"
    assert document["warnings"] == ["step 60, flicker: every 4 frames"]
    assert document["seconds_left"] == pytest.approx(420)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    fails = {"event": "checkpoint_failed", "step": 80, "at": T0 + 111, "text": "the disk is full"}
    found = read(tmp_path, [*LIVE, fails])
    assert (found.checkpoint_step, found.checkpoint_error) == (40, "the disk is full")
    assert {"what": "checkpoint fails", "value": "the disk is full"} in found.rows()


def test_a_run_that_says_nothing_may_be_gone(tmp_path: Path) -> None:
    assert read(tmp_path, LIVE, after=FRESH_SECONDS - 1).state == "running"
    found = read(tmp_path, LIVE, after=FRESH_SECONDS + 1)
    assert (found.state, found.seconds_left) == ("silent", None)
    assert found.rows()[0]["value"] == "silent since 121 s"


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ([OPEN], "starting", ""),
        ([*LIVE, OPEN | {"at": T0 + 200}], "starting", ""),
        ([*LIVE, {"event": "end", "step": 80, "at": T0 + 111, "stopped": "budget",
                  "reason": "$95 spent"}], "budget", "$95 spent"),
        ([*LIVE, {"event": "end", "step": 80, "at": T0 + 111, "stopped": "good enough",
                  "reason": "31.60 dB reaches 31.50 dB"}, OPEN | {"at": T0 + 200}],
         "good enough", "31.60 dB reaches 31.50 dB"),
        ([*LIVE, {"event": "failed", "at": T0 + 111, "text": "no room"}], "failed", "no room"),
        ([*LIVE, {"event": "failed", "at": T0 + 111, "text": "no room"},
          OPEN | {"at": T0 + 200}, start(210, 80)], "running", ""),
        ([*LIVE, {"event": "end", "step": 80, "at": T0 + 111, "stopped": "finished",
                  "reason": "all done"}, OPEN | {"at": T0 + 200}], "finished", "all done"),
    ],
)  # fmt: skip
def test_how_a_run_stands(tmp_path: Path, events, state: str, reason: str) -> None:
    found = read(tmp_path, events)
    assert (found.state, found.reason) == (state, reason)
    assert found.rows()[0]["value"] == (f"{state}: {reason}" if reason else state)


def test_nothing_is_known_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    found = read(tmp_path, [OPEN])
    assert (found.loss, found.val_psnr, found.spent_usd, found.checkpoint_step) == (None,) * 4
    assert [row["what"] for row in found.rows()] == [
        "state", "step", "per 0.1 dB", "restarts", "warnings"
    ]  # fmt: skip


def test_a_line_cut_short_is_left_out_and_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in LIVE) + '{"event": "st')
    assert read_status(path, customer="acme", now=T0 + 120).step == 80
    path.write_text("{}\n")
    with pytest.raises(CorruptFile, match="line 1"):
        read_status(path, customer="acme", now=T0)
    with pytest.raises(UserError, match="run: turbo-vaed poc acme"):
        read_status(tmp_path / "none.jsonl", customer="acme", now=T0)
