"""What a run remembers of its steps: bounded in its checkpoints, thinned in history.json."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.distill.checkpoints import make_checkpoint
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.history import (
    LAST_STEPS,
    LOSS,
    MOST_STEPS,
    MOST_VALIDATIONS,
    RECENT_STEPS,
    VALIDATION,
    Row,
    bounded,
    logged_rows,
    write_curves,
    write_student,
)
from turbo_vaed.distill.student import Student
from turbo_vaed.planning.history import _moments


def row(step: int, *, validate_every: int = 0, psnr: float = 30.0) -> Row:
    """As the loop writes it."""
    found: Row = {
        "step": step, "at": 1.7e9 + step, "step_seconds": 0.51, "loss": 0.0312 + 1 / step,
        "loss_source": 0.02, "loss_teacher": 0.03, "learning_rate": 1e-3 / step,
        "spent_usd": f"{step * 1e-5:.8f}", "training_usd": f"{step * 1e-5:.12f}",
    }  # fmt: skip
    if validate_every and step % validate_every == 0:
        found |= {"val_psnr": psnr, "val_ssim": 0.9}
    return found


def remembered(steps: int, *, validate_every: int) -> list[Row]:
    """What the loop holds after so many steps."""
    history: list[Row] = []
    for step in range(1, steps + 1):
        psnr = 40.0 if step == 2 * validate_every else 30.0
        history = bounded([*history, row(step, validate_every=validate_every, psnr=psnr)])
    return history


def test_a_short_run_keeps_its_whole_history() -> None:
    assert [r["step"] for r in remembered(RECENT_STEPS, validate_every=10)] == [
        *range(1, RECENT_STEPS + 1)
    ]


def test_validations_and_the_last_steps_stay() -> None:
    steps = [r["step"] for r in remembered(300, validate_every=50)]
    assert steps == [50, 100, 150, 200, *range(300 - RECENT_STEPS + 1, 301)]


@pytest.mark.slow
def test_a_checkpoint_of_a_long_run_is_no_larger_than_one_of_a_short(tmp_path: Path) -> None:
    """However often it validates: 12 MB of rows were in one at 100,000 steps."""
    sizes = []
    for steps in (5_000, 20_000):
        history = remembered(steps, validate_every=2)
        assert len(history) <= RECENT_STEPS + MOST_VALIDATIONS + 1
        assert history[0]["val_psnr"] == 40.0, "the best one stays"
        state = dataclasses.replace(make_checkpoint(steps), history=history)
        sizes.append(Store(str(tmp_path / str(steps))).write(state).bytes)
    assert sizes[1] < 1.01 * sizes[0] and sizes[1] < 400_000


def test_bounding_a_history_twice_equals_bounding_it_once() -> None:
    """So a run that was resumed at any step remembers what an uninterrupted one does."""
    rows = [row(step, validate_every=3) for step in range(1, 400)]
    assert bounded([*bounded(rows[:250]), *rows[250:]]) == bounded(rows)


def events(*groups: tuple[int | None, int], job: str = "a", every: int = 50) -> list[Row]:
    """Of a driver with groups of workers, each from the step that it resumed from to its last."""
    found: list[Row] = [{"event": "open", "job": job}]
    for resumed_from, last in groups:
        found.append({"event": "start", "resumed_from": resumed_from})
        for step in range((resumed_from or 0) + 1, last + 1):
            found.append({"event": "step", **row(step, validate_every=every), "loss": last})
    return found


def test_the_log_has_every_step_of_a_short_run_without_abandoned_ones() -> None:
    log = events((None, 80), (60, 100))
    rows = logged_rows(log, job="a", steps=100)
    assert [*rows] == [*range(1, 101)]
    assert [rows[step]["loss"] for step in (60, 61)] == [80, 100], "71 to 80 were computed again"
    assert "event" not in rows[1]


def test_events_of_another_job_are_skipped() -> None:
    assert logged_rows(events((None, 30), job="b"), job="a", steps=30) == {}
    both = events((None, 30), job="b") + events((None, 10))
    assert [*logged_rows(both, job="a", steps=10)] == [*range(1, 11)]


def test_a_validation_at_a_stop_belongs_to_the_last_step() -> None:
    log = [*events((None, 7)), {"event": "validated", "step": 7, "val_psnr": 31.0, "at": 1.0}]
    last = logged_rows(log, job="a", steps=7)[7]
    assert last["val_psnr"] == 31.0 and last["at"] == row(7)["at"]


def test_a_long_run_is_thinned_and_its_validations_and_last_steps_stay() -> None:
    steps = 30_000
    rows = logged_rows(events((None, steps), every=1111), job="a", steps=steps)
    assert len(rows) < MOST_STEPS + LAST_STEPS + steps / 1111 + 2
    assert {1, *range(1111, steps, 1111), *range(steps - LAST_STEPS + 1, steps + 1)} <= rows.keys()
    thinned = {"steps": [rows[step] for step in sorted(rows)]}
    assert len(_moments(thinned)) >= LAST_STEPS, "enough for the pace of the next estimate"
    assert _moments(thinned)[-1] - _moments(thinned)[0] == len(_moments(thinned)) - 1


def write(
    job: Any, folder: Path, log: list[Row], **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The history returned and the one in the file, of a state at step 40."""
    weights = Student(job.student, with_heads=False).decoder.state_dict()
    state = dataclasses.replace(make_checkpoint(40), best=weights, **changes)
    progress = folder / "progress.jsonl"
    if log:
        progress.write_text("".join(json.dumps({"at": 1.0, **event}) + "\n" for event in log))
    (folder / "out").mkdir()
    found = write_student(state, job, folder / "out", progress_file=progress, summary={})
    return found, json.loads((folder / "out" / "history.json").read_text())


@pytest.mark.parametrize("limit", [None, "0.010"])
def test_the_history_has_the_end_and_its_limits(make_job, tmp_path: Path, limit: Any) -> None:
    job = make_job(steps=50, stop_usd_per_tenth_db=limit)
    found, history = write(job, tmp_path, [], stopped="good enough", reason="it is")
    assert (history["stopped"], history["reason"]) == ("good enough", "it is")
    assert history["target_psnr"] is None
    known = history["limit_usd_per_tenth_db"]
    assert known == (None if limit is None else "0.01")
    assert limit is None or Decimal(known) == Decimal(limit)
    assert found == history


def test_rows_come_from_the_checkpoint_and_the_log(make_job, tmp_path: Path) -> None:
    """A step that only the log has is there; where both have one, the checkpoint's is the real."""
    job = make_job()
    log = events((None, 45), job=job.name)
    _, history = write(job, tmp_path, log, history=[{**row(40), "loss": 7.0}])
    assert [r["step"] for r in history["steps"]] == [*range(1, 41)]
    assert [r["loss"] for r in history["steps"][-2:]] == [45, 7.0]


def test_without_a_log_the_checkpoint_has_the_validations(make_job, tmp_path: Path) -> None:
    """Its store may be shared, and the log of another machine."""
    history = bounded([row(step, validate_every=10) for step in range(1, 41)])
    _, written = write(make_job(), tmp_path, [], history=history)
    assert [r["step"] for r in written["steps"] if "val_psnr" in r] == [10, 20, 30, 40]


def test_a_curve_has_a_row_per_step_that_has_the_value(tmp_path: Path) -> None:
    steps = [
        {"step": 0, "val_psnr": 20.5},
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "val_psnr": 21.0},
    ]
    write_curves(steps, tmp_path)
    assert (tmp_path / LOSS).read_text().split() == ["step,loss", "1,0.5", "2,0.25"]
    assert (tmp_path / VALIDATION).read_text().split() == ["step,psnr_db", "0,20.5", "2,21.0"]
    assert {path.name for path in tmp_path.iterdir()} == {LOSS, VALIDATION}
