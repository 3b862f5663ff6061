"""What a progress file says of saves and losses, and how often to save for that."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.distill.event_log import T0, start, steps
from turbo_vaed.distill.events import DEFAULT_SAVE_SECONDS, read_progress

OPEN = {"event": "open", "job": "a", "steps": 60, "usd_per_hour": "0.36"}


def write(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_without_events_the_interval_assumes_a_loss_in_five_hours(tmp_path: Path) -> None:
    found = read_progress(tmp_path / "none")
    assert (found.save_seconds, found.restart_seconds, found.losses, found.active_seconds) == (
        None, None, 0, 0.0
    )  # fmt: skip
    between = 5 * 3600
    expected = math.sqrt(2 * DEFAULT_SAVE_SECONDS * between) - DEFAULT_SAVE_SECONDS
    assert found.checkpoint_every_seconds == pytest.approx(expected)


def test_saves_losses_and_hours_are_read_from_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "progress.jsonl",
        {**OPEN, "at": T0},
        start(10),
        *steps(1, 5, at=20),
        {"event": "checkpoint", "step": 2, "at": T0 + 24, "seconds": 4.0},
        {"event": "checkpoint", "step": 5, "at": T0 + 25, "seconds": 8.0},
        start(3610, resumed_from=5),  # a worker was lost
        {"event": "interruption", "step": 5, "at": T0 + 3620, "deadline_seconds": 90.0},
        start(3630, resumed_from=5),  # foreseen
        {**OPEN, "at": T0 + 90_000},  # a night in which nobody ran
        start(90_010, resumed_from=5),
    )
    found = read_progress(path)
    assert found.save_seconds == 6.0
    assert found.losses == 2, "the worker, and the driver that was started again"
    assert found.interruptions == 2, "the worker, and the one that was foreseen"
    assert found.active_seconds == pytest.approx(3630 + 10)
    between = 3600 * (5 + found.active_seconds / 3600) / (1 + 2)
    expected = math.sqrt(2 * 6.0 * between) - 6.0
    assert found.checkpoint_every_seconds == pytest.approx(expected)
