"""Events of a run, made up, and the two sides of what follows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.distill.events import read_events
from turbo_vaed.distill.progress import ProgressRecorder
from turbo_vaed.errors import Unreachable

T0 = 1_763_800_000.0
PRICE = Decimal("0.36")
"""0.0001 USD a second."""


def start(at: float, resumed_from: int | None = None, world: int = 2) -> dict[str, Any]:
    return {"event": "start", "step": resumed_from or 0, "at": T0 + at, "world": world,
            "resumed_from": resumed_from, "checkpoint": None, "device": "cpu",
            "precision": "fp32", "compiled": False}  # fmt: skip


def step(number: int, at: float, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "at": T0 + at, "step_seconds": 1.0, "loss": 0.0312,
            "loss_source": 0.03, "learning_rate": 1e-3, "spent_usd": f"{0.0001 * at:.8f}",
            **more}  # fmt: skip


def steps(first: int, last: int, at: float) -> list[dict[str, Any]]:
    """One a second, the first done at `at`."""
    return [step(n, at + n - first) for n in range(first, last + 1)]


END = {"event": "end", "stopped": "finished", "reason": "all steps done"}


@dataclass
class Books:
    """A tracker's other side."""

    wasted: list[tuple[float, float, str]] = field(default_factory=list)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pictures: list[tuple[bytes, str]] = field(default_factory=list)
    is_down: bool = False

    def mark(self, start: datetime, end: datetime, reason: str) -> None:
        if self.is_down:
            raise Unreachable("the ledger does not answer")
        assert start.utcoffset() == end.utcoffset() == UTC.utcoffset(None)
        self.wasted.append((start.timestamp() - T0, end.timestamp() - T0, reason))

    def run_context(self) -> RunContext:
        return RunContext(
            mark_wasted=self.mark,
            log_metrics=lambda values, at: self.metrics.append((at, dict(values))),
            log_picture=lambda png, name: self.pictures.append((png, name)),
        )


class Clock:
    """The driver's own time, beside that of the events."""

    def __init__(self) -> None:
        self.now = T0

    def time(self) -> float:
        return self.now


def make_recorder(
    path: Path,
    run_context: RunContext,
    job: str = "distill-a",
    steps: int = 60,
    on_checkpoint: Callable[[], None] = lambda: None,
) -> ProgressRecorder:
    return ProgressRecorder(
        path,
        job=job,
        steps=steps,
        usd_per_hour=PRICE,
        run_context=run_context,
        on_checkpoint=on_checkpoint,
    )


def lines(path: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(path) if not kinds or event["event"] in kinds]
