"""What was told of a run, line by line, and what follows from it.

A run may have had several drivers, and a driver several groups of workers. Each driver begins
with `open`, each group with `start`; `preparing` is told before a driver opens, and is no part of
the run; everything else is what rank 0 told. All that is known of a
run is a function of these lines alone, so that a driver that starts anew, and a person who asks
from outside, know as much as the one that was there.

Times are Unix seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from turbo_vaed.costs.money import time_usd
from turbo_vaed.distill.outlook import seconds_left, usd_per_tenth_db
from turbo_vaed.errors import CorruptFile

NOTICED, LOST = "machine taken back with notice", "worker lost"
"""Why a group of workers began anew: two of the reasons that a restart may have."""
Interval = tuple[float, float]
PREPARING = "preparing"
"""An event of work before the steps. It adds neither to what a run took nor to what it lost."""


class Preparation(NamedTuple):
    """What is made before a driver opens, as it was last told."""

    doing: str
    began_at: float
    last_at: float
    done: int
    """So many of the clips."""
    clips: int
    failed: str
    """What it ended with, in its own words."""


class Validation(NamedTuple):
    """The student on the validation clips."""

    step: int
    spent_usd: Decimal
    """By the run."""
    psnr: float
    """dB."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Work that was begun again, and the time that this cost."""

    reason: str
    step: int
    """The last one seen before."""
    lost_steps: int
    """Those up to it that were computed again."""
    wasted: tuple[Interval, ...]
    """Never inside another restart's, nor while no driver ran."""
    usd: Decimal

    @property
    def seconds(self) -> float:
        """Of all that was wasted."""
        return sum(end - begin for begin, end in self.wasted)

    def __str__(self) -> str:
        return (
            f"{self.reason} at step {self.step}, on again from step {self.step - self.lost_steps}"
        )


@dataclass(kw_only=True)
class Account:
    """A run, as its events tell it."""

    job: str = ""
    steps: int = 0
    """That were planned."""
    usd_per_hour: Decimal = Decimal(0)
    step: int = 0
    """The last one done on the line that goes on."""
    workers: int = 0
    machine: dict[str, Any] = field(default_factory=dict)
    """`device`, `precision`, `compiled` of the last group."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Of the last step told."""
    validations: list[Validation] = field(default_factory=list)
    """Those on the line that goes on."""
    checkpoints: dict[int, float] = field(default_factory=dict)
    """When the one of a step was written, on the line that goes on."""
    save_error: str = ""
    """Why the last attempt to write one failed."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """`step`, `kind` and `text` of each."""
    restarts: list[Restart] = field(default_factory=list)
    booked: int = 0
    """So many of the restarts are in the ledger."""
    ended: Mapping[str, Any] | None = None
    """Rank 0's last word: `stopped` and `reason`."""
    failed: str = ""
    """What the last driver ended with, in its own words."""
    preparing: Preparation | None = None
    """Until the driver that it is for opens."""
    last_at: float = 0.0
    _is_started: bool = False
    _cause: str = ""
    reached: dict[int, float] = field(default_factory=dict)
    """When each step was done, on the line that goes on."""
    _begun: dict[int, float] = field(default_factory=dict)
    """When workers began anew at a step instead, on that line."""
    _wasted: list[Interval] = field(default_factory=list)
    _dead: list[Interval] = field(default_factory=list)
    """No driver ran."""

    @property
    def usd_per_tenth_db(self) -> Decimal | None:
        """What the last 0.1 dB cost."""
        return usd_per_tenth_db([(known.spent_usd, known.psnr) for known in self.validations])

    @property
    def seconds_left(self) -> float | None:
        """Until all steps are done."""
        validated = [known.step for known in self.validations]
        return seconds_left(self.reached, validated, step=self.step, steps=self.steps)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event into account."""
        at = float(event["at"])
        if event["event"] == PREPARING:
            told = (event[key] for key in ("doing", "began_at", "at", "done", "clips", "failed"))
            self.preparing = Preparation(*told)
            return
        match event["event"]:
            case "open":
                self._open(event, at)
            case "start":
                self._start(event, at)
            case "step":
                self._step(event, at)
            case "validated":
                self._validated(event)
            case "checkpoint":
                self.checkpoints[event["step"]], self.save_error = at, ""
            case "checkpoint_failed":
                self.save_error = event["text"]
            case "warning":
                found = {key: event[key] for key in ("step", "kind", "text")}
                same = [(w["step"], w["kind"]) for w in self.warnings]
                if (found["step"], found["kind"]) not in same:  # told again after a restart
                    self.warnings.append(found)
            case "interruption":
                self._cause = NOTICED
            case "wasted":
                self.booked += 1
            case "end":
                self.ended = event
            case "failed":
                self.failed = event["text"]
        self.last_at = max(self.last_at, at)

    def _open(self, event: Mapping[str, Any], at: float) -> None:
        """A driver: nothing ran between it and the last sign of the one before."""
        self.preparing = None
        if 0 < self.last_at < at:
            self._dead.append((self.last_at, at))
        if self._is_started and self.ended is None:
            self._cause = "driver started again"
            if event["job"] != self.job:
                self._lose(0, self.last_at, "given up for other params or data")
                self._go_on_from(0)
                self._is_started = False
        self.job, self.steps = event["job"], event["steps"]
        self.usd_per_hour = Decimal(event["usd_per_hour"])
        self.failed = ""
        if self.ended is None:
            self.workers = 0

    def _start(self, event: Mapping[str, Any], at: float) -> None:
        """A group of workers, at the state that it found."""
        step, workers = event["resumed_from"] or 0, event["world"]
        if self._is_started and self.ended is None:
            grown = f"grown from {self.workers} to {workers} workers"
            self._lose(step, at, self._cause or (grown if workers > self.workers else LOST))
        self._go_on_from(step)
        self._begun[step] = at
        self.workers, self._is_started, self._cause, self.ended = workers, True, "", None
        self.machine = {key: event[key] for key in ("device", "precision", "compiled")}

    def _lose(self, step: int, at: float, reason: str) -> None:
        """What came after `step`, up to the moment `at`, was for nothing."""
        known = [*self.reached.items(), *self._begun.items()]
        began = min((t for s, t in known if s >= step), default=self.last_at)
        wasted = tuple(_without((began, at), [*self._wasted, *self._dead]))
        microseconds = round(sum(end - begin for begin, end in wasted) * 1e6)
        self._wasted += wasted
        self.restarts.append(
            Restart(
                reason=reason,
                step=self.step,
                lost_steps=max(0, self.step - step),
                wasted=wasted,
                usd=time_usd(microseconds, self.usd_per_hour),
            )
        )

    def _go_on_from(self, step: int) -> None:
        self.step = step
        self.validations = [known for known in self.validations if known.step <= step]
        self.warnings = [known for known in self.warnings if known["step"] <= step]
        self.reached = {s: t for s, t in self.reached.items() if s < step}
        self._begun = {s: t for s, t in self._begun.items() if s < step}
        self.checkpoints = {s: t for s, t in self.checkpoints.items() if s <= step}

    def _step(self, event: Mapping[str, Any], at: float) -> None:
        self.step, self.row = event["step"], event
        self.reached[self.step] = at
        if "val_psnr" in event:
            self._validated(event)

    def _validated(self, event: Mapping[str, Any]) -> None:
        """With a step, or after the last one before a stop."""
        spent = Decimal(event["spent_usd"])
        self.validations.append(Validation(event["step"], spent, event["val_psnr"]))


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file, in order; a last line that was cut short is left out.

    Raises:
        CorruptFile: another line is no event.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            event = json.loads(line)
            whole = isinstance(event["event"], str) and isinstance(event["at"], int | float)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise CorruptFile(
                f"{path}, line {number}: found {line[:60]!r}; expected an event of a "
                "distillation. Delete the file: only what earlier tries wasted is forgotten"
            )
        yield event


def _without(interval: Interval, others: Sequence[Interval]) -> list[Interval]:
    """The parts of an interval that are in none of the others."""
    parts = [interval]
    for other_begin, other_end in others:
        parts = [
            part
            for begin, end in parts
            for part in ((begin, min(end, other_begin)), (max(begin, other_end), end))
        ]
        parts = [(begin, end) for begin, end in parts if end > begin]
    return [(begin, end) for begin, end in parts if end > begin]
