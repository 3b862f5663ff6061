"""The status of a run in flight, or of the last one, from its event log alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from turbo_vaed.distill.events import read_progress
from turbo_vaed.distill.progress import (
    FRESH_SECONDS,
    read_status,
    report_preparation,
    status_rows,
)
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


def read(tmp_path: Path, events: list[dict[str, Any]], after: float = 5.0) -> SimpleNamespace:
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return SimpleNamespace(**read_status(path, customer="acme", now=events[-1]["at"] + after))


def table(found: SimpleNamespace) -> dict[str, str]:
    return {row["what"]: row["value"] for row in status_rows(vars(found))}


def test_the_status_of_a_run_in_progress(tmp_path: Path) -> None:
    found = read(tmp_path, LIVE)
    assert (found.customer, found.state, found.step, found.steps) == ("acme", "running", 80, 500)
    assert found.loss == 1 / 80
    assert (found.val_psnr, found.best_val_psnr, found.best_step) == (31.4, 31.6, 60)
    assert found.spent_usd == "0.011"
    assert float(found.usd_per_tenth_db) == pytest.approx(0.0015)  # 0.4 dB from 50 s to 110 s
    assert found.seconds_left == pytest.approx(420)
    assert found.workers == 1
    assert (found.checkpoint_step, found.checkpoint_age_seconds) == (40, 64)
    assert (found.restarts, found.lost_steps) == (1, 7)
    assert found.wasted_seconds == pytest.approx(20.3)
    assert float(found.wasted_usd) == pytest.approx(0.00203)
    assert found.warnings == ["step 60, flicker: every 4 frames"]


def test_the_table_of_a_run_in_progress_in_words(tmp_path: Path) -> None:
    """The one test of its wording."""
    assert table(read(tmp_path, LIVE)) == {
        "state": "running", "step": "80 of 500", "loss": "0.0125", "validation PSNR": "31.40 dB",
        "best PSNR": "31.60 dB at step 60", "spent by the run": "$0.011",
        "cost of the last 0.1 dB": "$0.0015", "time left": "7:00", "workers": "1",
        "last checkpoint": "step 40, 1:04 ago",
        "restarts": "1; wasted: 7 steps, 20.3 s, $0.00203",
        "warnings": "step 60, flicker: every 4 frames",
    }  # fmt: skip


def test_the_status_is_json(tmp_path: Path) -> None:
    found = vars(read(tmp_path, LIVE))
    assert json.loads(json.dumps(found)) == found


def test_a_checkpoint_that_cannot_be_written_is_in_the_status(tmp_path: Path) -> None:
    fails = {"event": "checkpoint_failed", "step": 80, "at": T0 + 111, "text": "disk full"}
    found = read(tmp_path, [*LIVE, fails])
    assert (found.checkpoint_step, found.checkpoint_error) == (40, "disk full")
    assert table(found)["checkpoint error"] == "disk full"


def test_a_run_without_recent_events_is_silent(tmp_path: Path) -> None:
    assert read(tmp_path, LIVE, after=FRESH_SECONDS - 1).state == "running"
    found = read(tmp_path, LIVE, after=FRESH_SECONDS + 1)
    assert (found.state, found.seconds_left) == ("silent", None)
    assert table(found)["state"] == "silent for 2:01"


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
def test_the_state_of_a_run(tmp_path: Path, events, state: str, reason: str) -> None:
    found = read(tmp_path, events)
    assert (found.state, found.reason) == (state, reason)
    assert table(found)["state"].endswith(reason or state)


def test_a_run_without_a_step_has_no_figures(tmp_path: Path) -> None:
    found = read(tmp_path, [OPEN])
    assert (found.loss, found.val_psnr, found.spent_usd, found.checkpoint_step) == (None,) * 4
    assert not {"loss", "validation PSNR", "last checkpoint"} & set(table(found))


def test_a_truncated_line_is_skipped_and_an_invalid_file_refused(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in LIVE) + '{"event": "st')
    assert read_status(path, customer="acme", now=T0 + 120)["step"] == 80
    path.write_text("{}\n")
    with pytest.raises(CorruptFile, match="line 1"):
        read_status(path, customer="acme", now=T0)
    with pytest.raises(UserError, match="turbo-vaed poc acme"):
        read_status(tmp_path / "none.jsonl", customer="acme", now=T0)


def caching(at: float, done: int, failed: str = "") -> dict[str, Any]:
    return {"event": "preparing", "at": T0 + at, "began_at": T0 + 100, "done": done, "clips": 50,
            "doing": "caching targets", "failed": failed}  # fmt: skip


def test_preparation_before_the_first_step_is_in_the_status(tmp_path: Path) -> None:
    found = read(tmp_path, [caching(100, 2), caching(160, 12)])
    assert (found.state, found.done_clips, found.clips) == ("preparing", 12, 50)
    assert (found.doing, found.doing_seconds) == ("caching targets", 65)
    assert re.search(r"preparing \(caching targets, .*1:05", table(found)["state"])
    assert table(found)["clips done"] == "12 of 50"
    silent = read(tmp_path, [caching(160, 12)], after=180)
    assert (silent.state, silent.silent_seconds, silent.doing_seconds) == ("silent", 180, 240)
    failed = read(tmp_path, [caching(160, 12), caching(161, 12, failed="disk full")])
    assert (failed.state, failed.reason) == ("failed", "disk full")
    opened = read(tmp_path, [caching(160, 12), OPEN | {"at": T0 + 170}])
    assert (opened.state, opened.doing, opened.clips) == ("starting", "", None)


def test_preparation_keeps_the_figures_of_a_resumed_run_and_not_of_an_ended_one(
    tmp_path: Path,
) -> None:
    end = {"event": "end", "step": 80, "at": T0 + 111, "stopped": "finished", "reason": "all done"}
    going_on = read(tmp_path, [*LIVE, caching(160, 12)])
    assert (going_on.state, going_on.step, going_on.seconds_left) == ("preparing", 80, None)
    anew = read(tmp_path, [*LIVE, end, caching(160, 12)])
    assert (anew.state, anew.steps, anew.loss) == ("preparing", 0, None)


def test_preparation_does_not_count_as_time_of_the_run(tmp_path: Path) -> None:
    later = [OPEN | {"at": T0 + 900}, start(910, 80)]
    plain, path = read(tmp_path, [*LIVE, *later]), tmp_path / "progress.jsonl"
    before = read_progress(path)
    prepared = read(tmp_path, [*LIVE, caching(500, 0), caching(800, 50), *later])
    assert prepared.wasted_seconds == plain.wasted_seconds > 20.3
    found = read_progress(path)
    assert found.active_seconds == before.active_seconds
    assert found.checkpoint_every_seconds == before.checkpoint_every_seconds


def test_preparation_is_logged_clip_by_clip_and_with_its_failure(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "progress.jsonl"
    with report_preparation(path) as report:
        pass
    with pytest.raises(ValueError, match="gone"), report_preparation(path) as report:
        report("measuring", 0, 3)
        report("caching", 1, 3)
        report("caching", 2, 3)
        raise ValueError("disk gone")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["doing"], line["done"], line["failed"]) for line in lines] == [
        ("measuring", 0, ""), ("caching", 1, ""), ("caching", 2, ""),
        ("caching", 2, "disk gone"),
    ]  # fmt: skip
    assert lines[1]["began_at"] == lines[3]["began_at"]
