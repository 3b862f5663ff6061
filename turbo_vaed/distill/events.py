"""The event log of a distillation, and the state of the run that follows from it.

A run may have several drivers, and a driver several groups of workers. A driver logs `open`, each
group of workers `start`; `preparing` is logged before a driver opens and is no part of the run; all
other events but `wasted` and `failed` are rank 0's. Everything known of a run is a function of
these lines alone, so a driver that starts anew, and a person who asks from outside, know as much as
the driver that was there.

Times are Unix seconds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from turbo_vaed.costs.choice import checkpoint_interval_seconds, losses_per_hour
from turbo_vaed.costs.money import time_usd
from turbo_vaed.errors import CorruptFile

INTERRUPTED, LOST = "machine interrupted with notice", "worker lost"
"""Two of the reasons of a restart: a machine was taken away."""
PREPARING = "preparing"
"""The event of work before the steps. It adds nothing to the run's times."""
DEFAULT_SAVE_SECONDS, DEFAULT_RESTART_SECONDS = 1.0, 45.0
"""Before any checkpoint or restart: as bench/distill.py measures them, rounded up."""
VALIDATIONS = 5
"""The price of quality is taken over this many validations: one alone is mostly noise."""
RECENT_STEPS = 20
"""The time of a step is the median of this many: one that waited for something does not count."""
Event = Mapping[str, Any]
Interval = tuple[float, float]


class Preparation(NamedTuple):
    """Work on clips before a driver opens, as last reported."""

    activity: str
    began_at: float
    last_at: float
    done: int
    """Clips."""
    clips: int
    failure: str
    """The message of the error that ended it; "" while it goes on."""


class ValidationEvent(NamedTuple):
    """The student on the validation clips."""

    step: int
    spent_usd: Decimal
    """By the run."""
    psnr: float
    """dB."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A restart of workers or driver, and the time that it wasted."""

    reason: str
    step: int
    """The last one logged before."""
    lost_steps: int
    """Steps to be computed again."""
    wasted: tuple[Interval, ...]
    """Disjoint from other restarts' and from times without a driver."""
    usd: Decimal

    @property
    def seconds(self) -> float:
        """Of all that was wasted."""
        return sum(end - begin for begin, end in self.wasted)

    def __str__(self) -> str:
        return f"{self.reason} at step {self.step}, resumed from step {self.step - self.lost_steps}"


@dataclass(kw_only=True)
class RunProgress:
    """The state of a run after the events added so far."""

    job: str = ""
    steps: int = 0
    """Planned."""
    usd_per_hour: Decimal = Decimal(0)
    step: int = 0
    """The last one done that was not lost."""
    workers: int = 0
    machine: dict[str, Any] = field(default_factory=dict)
    """`device`, `precision`, `compiled` of the last group of workers."""
    row: Event = field(default_factory=dict)
    """The last `step` event."""
    validations: list[ValidationEvent] = field(default_factory=list)
    """Without those of lost steps, as are `checkpoint_times`, `warnings` and `reached`."""
    checkpoint_times: dict[int, float] = field(default_factory=dict)
    """Step -> when its checkpoint was written."""
    checkpoint_error: str = ""
    """Why the last attempt to write one failed."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """`step`, `kind` and `text` of each."""
    reached: dict[int, float] = field(default_factory=dict)
    """Step -> when it was done."""
    restarts: list[Restart] = field(default_factory=list)
    booked_restarts: int = 0
    """Of them, those already marked as wasted in the ledger."""
    ended: Event | None = None
    """The `end` event: `stopped` and `reason`."""
    failure: str = ""
    """The message of the error that ended the last driver."""
    preparation: Preparation | None = None
    """Until the driver that it is for opens."""
    last_at: float = 0.0
    active_seconds: float = 0.0
    """In which a driver ran."""
    _save_seconds: list[float] = field(default_factory=list)
    _is_started: bool = False
    _cause: str = ""
    _started: dict[int, float] = field(default_factory=dict)
    """Step -> when workers started from it."""
    _wasted: list[Interval] = field(default_factory=list)
    _idle: list[Interval] = field(default_factory=list)
    """Times without a driver."""

    @property
    def recent_usd_per_tenth_db(self) -> Decimal | None:
        """What the last 0.1 dB cost."""
        return recent_usd_per_tenth_db(
            [(known.spent_usd, known.psnr) for known in self.validations]
        )

    @property
    def seconds_left(self) -> float | None:
        """Until all steps are done; None before it can be estimated."""
        validated = [known.step for known in self.validations]
        return seconds_left(self.reached, validated, step=self.step, steps=self.steps)

    @property
    def save_seconds(self) -> float | None:
        """Median of the checkpoints' durations."""
        return statistics.median(self._save_seconds) if self._save_seconds else None

    @property
    def restart_seconds(self) -> float | None:
        """Median of the times that restarts wasted."""
        seconds = [restart.seconds for restart in self.restarts]
        return statistics.median(seconds) if seconds else None

    @property
    def losses(self) -> int:
        """Restarts without notice, where the work since the last checkpoint was lost."""
        return sum(restart.reason != INTERRUPTED for restart in self.restarts)

    @property
    def interruptions(self) -> int:
        """Machines that were taken away, with notice or without."""
        return sum(restart.reason in (INTERRUPTED, LOST) for restart in self.restarts)

    @property
    def checkpoint_every_seconds(self) -> float:
        """Time between two checkpoints by Young and Daly, from the saves and losses so far."""
        return checkpoint_interval_seconds(
            self.save_seconds or DEFAULT_SAVE_SECONDS,
            losses_per_hour(self.losses, self.active_seconds / 3600),
        )

    def add(self, event: Event) -> None:
        """Advance by the next event."""
        at = float(event["at"])
        if event["event"] == PREPARING:
            fields = ("doing", "began_at", "at", "done", "clips", "failed")
            self.preparation = Preparation(*(event[name] for name in fields))
            return
        if self.last_at and event["event"] != "open":
            self.active_seconds += max(0.0, at - self.last_at)
        match event["event"]:
            case "open":
                self._open(event, at)
            case "start":
                self._start(event, at)
            case "step":
                self.step, self.row = event["step"], event
                self.reached[self.step] = at
                if "val_psnr" in event:
                    self._validated(event)
            case "validated":  # before a stop, for a step that is logged already
                self._validated(event)
            case "checkpoint":
                self.checkpoint_times[event["step"]], self.checkpoint_error = at, ""
                self._save_seconds.append(event["seconds"])
            case "checkpoint_failed":
                self.checkpoint_error = event["text"]
            case "warning":
                warning = {key: event[key] for key in ("step", "kind", "text")}
                known = [(w["step"], w["kind"]) for w in self.warnings]
                if (warning["step"], warning["kind"]) not in known:  # logged again after a restart
                    self.warnings.append(warning)
            case "interruption":
                self._cause = INTERRUPTED
            case "wasted":
                self.booked_restarts += 1
            case "end":
                self.ended = event
            case "failed":
                self.failure = event["text"]
        self.last_at = max(self.last_at, at)

    def _open(self, event: Event, at: float) -> None:
        """A driver: none ran between the last event and this one."""
        self.preparation = None
        if 0 < self.last_at < at:
            self._idle.append((self.last_at, at))
        if self._is_started and self.ended is None:
            self._cause = "driver restarted"
            if event["job"] != self.job:
                self._lose(0, self.last_at, "abandoned for changed parameters or data")
                self._resume_from(0)
                self._is_started = False
        self.job, self.steps = event["job"], event["steps"]
        self.usd_per_hour = Decimal(event["usd_per_hour"])
        self.failure = ""
        if self.ended is None:
            self.workers = 0

    def _start(self, event: Event, at: float) -> None:
        """A group of workers, from the checkpoint that it found."""
        step, workers = event["resumed_from"] or 0, event["world"]
        if self._is_started and self.ended is None:
            scaled_up = f"scaled up from {self.workers} to {workers} workers"
            self._lose(step, at, self._cause or (scaled_up if workers > self.workers else LOST))
        self._resume_from(step)
        self._started[step] = at
        self.workers, self._is_started, self._cause, self.ended = workers, True, "", None
        self.machine = {key: event[key] for key in ("device", "precision", "compiled")}

    def _lose(self, step: int, at: float, reason: str) -> None:
        """A restart: what came after `step`, up to the moment `at`, is wasted."""
        known = [*self.reached.items(), *self._started.items()]
        began = min((t for s, t in known if s >= step), default=self.last_at)
        wasted = tuple(_without((began, at), [*self._wasted, *self._idle]))
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

    def _resume_from(self, step: int) -> None:
        self.step = step
        self.validations = [known for known in self.validations if known.step <= step]
        self.warnings = [known for known in self.warnings if known["step"] <= step]
        self.checkpoint_times = {s: t for s, t in self.checkpoint_times.items() if s <= step}
        self.reached = {s: t for s, t in self.reached.items() if s < step}
        self._started = {s: t for s, t in self._started.items() if s < step}

    def _validated(self, event: Event) -> None:
        spent = Decimal(event["spent_usd"])
        self.validations.append(ValidationEvent(event["step"], spent, event["val_psnr"]))


def read_progress(path: Path) -> RunProgress:
    """The run logged at `path`, which need not exist.

    Raises:
        CorruptFile: as `read_events`.
    """
    progress = RunProgress()
    for event in read_events(path) if path.is_file() else ():
        progress.add(event)
    return progress


def recorded_jobs(path: Path) -> set[str]:
    """Names of the jobs that may have left checkpoints: those in the log at `path`, whose storage
    may be a bucket, and those with a folder next to it.

    Raises:
        CorruptFile: as `read_events`.
    """
    events = read_events(path) if path.is_file() else ()
    logged = {event["job"] for event in events if event["event"] == "open"}
    return logged | {folder.name for folder in path.parent.glob("distill-*")}


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, in order; a last line that was cut short is left out.

    Raises:
        CorruptFile: another line is no event.
    """
    return events_in(path.read_bytes(), path)


def events_in(log: bytes, name: object) -> Iterator[dict[str, Any]]:
    """As `read_events`, of the bytes of a log that `name` is the place of."""
    for number, line in enumerate(log.split(b"\n")[:-1], 1):
        try:
            event = json.loads(line)
            is_event = isinstance(event["event"], str) and isinstance(event["at"], int | float)
        except (ValueError, TypeError, KeyError):
            is_event = False
        if not is_event:
            raise CorruptFile(
                f"{name}, line {number}: found {line[:60]!r}, expected an event of a "
                "distillation. Delete the file: only the record of earlier tries is lost"
            )
        yield event


def recent_usd_per_tenth_db(validations: Sequence[tuple[Decimal, float]]) -> Decimal | None:
    """USD for the last 0.1 dB, from (USD spent by the run, PSNR in dB) of each validation.

    The best student so far is what a run gives, so quality is the running best, which never
    falls. None where less than two are known or the last `VALIDATIONS` brought nothing.
    """
    known = [(usd, psnr) for usd, psnr in validations if math.isfinite(psnr)]
    best = list(accumulate((psnr for _, psnr in known), max))[-VALIDATIONS:]
    spent = spent_in_all([usd for usd, _ in known])[-VALIDATIONS:]
    if len(best) < 2 or not best[-1] > best[0]:
        return None
    return (spent[-1] - spent[0]) / Decimal(best[-1] - best[0]) / 10


def spent_in_all(spent: Sequence[Decimal]) -> list[Decimal]:
    """USD of a run and of those that it went on from, at each of its validations.

    Args:
        spent: by the run of that moment: a new one begins again from nothing, and so falls.
    """
    before, found = Decimal(0), []
    for i, usd in enumerate(spent):
        if i and usd < spent[i - 1]:
            before += spent[i - 1]
        found.append(before + usd)
    return found


def seconds_left(
    reached: Mapping[int, float], validated: Sequence[int], *, step: int, steps: int
) -> float | None:
    """Until all `steps` are done; None before there are two of them.

    Args:
        reached: the moment (in seconds) at which each step was done; one is left out where the
            run did not go straight on from it.
        validated: the steps after which validation clips were decoded, in order. The time of
            that may lie before or after the moment of the step.
        step: the last one done.
    """
    times = [
        reached[s + 1] - reached[s]
        for s in range(step - RECENT_STEPS, step)
        if s in reached and s + 1 in reached
    ]
    if not times:
        return None
    step_seconds = statistics.median(times)
    left = (steps - step) * step_seconds
    extra = [
        max(0.0, reached[s + 1] - reached[s - 1] - 2 * step_seconds)
        for s in validated[-VALIDATIONS:]
        if all(n in reached for n in (s - 1, s, s + 1))
    ]
    if not extra:
        return left
    first, last = validated[0], validated[-1]
    every = (last - first) / (len(validated) - 1) if last > first else first
    return left + (steps - step) / every * statistics.median(extra)


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
