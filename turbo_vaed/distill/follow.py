"""A distillation as its driver follows it: the progress file, the bar, the tracker, the waste.

The progress file outlives its driver. One that starts anew reads it, books what the run before
it lost, and goes on writing; `status.py` reads it from outside.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from turbo_vaed.costs.money import format_usd, plain
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.distill.events import PREPARING, Account, Restart, read_events
from turbo_vaed.distill.seen import Watching
from turbo_vaed.errors import TurboVaedError
from turbo_vaed.runtime.progress import format_duration, progress

SAMPLES = "samples"
"""Folder of the pictures, beside the progress file."""
_LATELY = 100
"""Steps."""
FIRST_AHEAD_SECONDS, LEAST_AHEAD_SECONDS = 600.0, 60.0
"""Workers are told every few seconds; a driver that is busy tells late."""
_FIGURES = ("loss", "loss_", "val_", "learning_rate", "step_seconds", "spent_usd")


class Follower:
    """Takes the events of a run, in order, from one thread, while its `with` block runs.

    Args:
        path: the progress file.
        job: name of what is distilled; another name is another student.
        steps: that are planned.
        usd_per_hour: of all nodes of the run together.
        tracker: where figures, pictures and waste go.

    Raises:
        CorruptFile: what is at `path` is no progress file.
    """

    def __init__(
        self, path: Path, *, job: str, steps: int, usd_per_hour: Decimal, run_context: RunContext
    ) -> None:
        self._run_context, self._samples = run_context, path.parent / SAMPLES
        self._steps = steps
        self._opening = {"job": job, "steps": steps, "usd_per_hour": plain(usd_per_hour)}
        self._told: set[str] = set()
        self._began_at: float | None = None  # this driver's first workers
        self._workers_began_at = math.inf  # the last ones
        self._shown = ExitStack()
        self._update: Callable[[int, str], None]
        self._lines = _Lines(path, failed=lambda said: self._tell_once("progress file", said))
        self._watching = Watching()
        for event in read_events(path):
            self._watching.add(event)

    @property
    def account(self) -> Account:
        """The run, as far as it was told."""
        return self._watching.account

    @property
    def checkpoint_every_seconds(self) -> float:
        """Between two checkpoints, by what the run has seen of saves and losses up to now."""
        return self._watching.seen().checkpoint_every_seconds

    @property
    def ahead_seconds(self) -> float:
        """How long the workers may go on until they are told again: twice the longest time between
        two of the last steps, with a validation and a save in between. Until these workers have
        done two, whose first takes longest, `FIRST_AHEAD_SECONDS`."""
        times = list(self.account.reached.values())[-_LATELY:]
        reached = [at for at in times if at >= self._workers_began_at]
        if len(reached) < 2:
            return FIRST_AHEAD_SECONDS
        longest = max(after - before for before, after in pairwise(reached))
        return max(LEAST_AHEAD_SECONDS, 2 * longest)

    def __enter__(self) -> Self:
        self._note("open", **self._opening)
        bar = progress("distill: step", self._steps, tells_time=True)
        self._update = self._shown.enter_context(bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.close()
        if error is not None:
            self._note("failed", text=str(error) or type(error).__name__)
        self._book()

    def take(self, event: Mapping[str, Any]) -> None:
        """The next event of rank 0."""
        if event["event"] == "start" and self.account.ended and event["resumed_from"] is None:
            self._begin_anew()
        if event["event"] == "picture":
            event = self._keep(event)
        known = len(self.account.restarts)
        self._watching.add(event)
        self._lines.add(event)
        self._forward(event)
        self._say(event, self.account.restarts[known:])
        self._update(self.account.step, describe(self.account))
        if event["event"] in ("start", "checkpoint"):  # not with every step: a ledger may be slow
            self._book()
        if event["event"] == "start":
            self._workers_began_at = event["at"]
            self._began_at = self._began_at or event["at"]
        self._keep_charges(event)

    def _keep_charges(self, event: Mapping[str, Any]) -> None:
        """What a checkpoint was paid for stays useful if the run fails; of a run that has diverged
        nothing does, for its checkpoints are removed."""
        if self._run_context.mark_useful_until is None or event["event"] not in (
            "checkpoint",
            "end",
        ):
            return
        ended = self.account.ended
        if ended is not None and ended["stopped"] == "diverged":
            assert self._began_at is not None, "it has started"
            self._run_context.mark_useful_until(_utc(self._began_at))
        elif event["event"] == "checkpoint":
            self._run_context.mark_useful_until(
                _utc(self.account.reached.get(event["step"], event["at"]))
            )

    def summary(self) -> dict[str, Any]:
        """For the run's history: where it ran, what went wrong, what quality cost in the end.

        `workers`, `device`, `precision` and `compiled` of the last group of workers, `warnings`,
        `restarts` and `usd_per_tenth_db`.
        """
        price = self.account.usd_per_tenth_db
        restarts = [
            {
                "step": restart.step,
                "lost_steps": restart.lost_steps,
                "seconds": round(restart.seconds, 3),
                "usd": plain(restart.usd),
                "reason": restart.reason,
            }
            for restart in self.account.restarts
        ]
        return {
            "workers": self.account.workers,
            **self.account.machine,
            "warnings": self.account.warnings,
            "restarts": restarts,
            "usd_per_tenth_db": None if price is None else f"{price:.8f}",
        }

    def _note(self, event: str, **facts: Any) -> None:
        """An event of the driver's own."""
        row = {"event": event, "at": time.time(), **facts}
        self._watching.add(row)
        self._lines.add(row)

    def _begin_anew(self) -> None:
        """The last run came to its end, and this is not more of it."""
        self._lines.clear()
        shutil.rmtree(self._samples, ignore_errors=True)
        self._watching = Watching()
        self._note("open", **self._opening)

    def _keep(self, picture: Mapping[str, Any]) -> dict[str, Any]:
        """The event of a picture that now lies in a file."""
        name = f"step-{picture['step']:06d}.png"
        try:
            self._samples.mkdir(parents=True, exist_ok=True)
            (self._samples / name).write_bytes(picture["png"])
        except OSError as error:
            self._tell_once("samples", f"pictures are not kept: {error}")
        if self._run_context.log_picture is not None:
            self._run_context.log_picture(picture["png"], name)
        kept = {key: value for key, value in picture.items() if key != "png"}
        return {**kept, "file": f"{SAMPLES}/{name}"}

    def _forward(self, event: Mapping[str, Any]) -> None:
        """A step's figures, to the tracker."""
        if event["event"] not in ("step", "validated") or self._run_context.log_metrics is None:
            return
        figures = {k: float(v) for k, v in event.items() if k.startswith(_FIGURES)}
        figures["workers"] = float(self.account.workers)
        price = self.account.usd_per_tenth_db
        if "val_psnr" in event and price is not None:
            figures["usd_per_tenth_db"] = float(price)
        finite = {key: value for key, value in figures.items() if math.isfinite(value)}
        self._run_context.log_metrics(finite, event["step"])

    def _say(self, event: Mapping[str, Any], restarts: list[Restart]) -> None:
        """What a person should not have to look for."""
        for restart in restarts:
            seconds, usd = f"{restart.seconds:.1f} s", format_usd(restart.usd)
            print(f"{restart} ({restart.lost_steps} steps, {seconds}, {usd} wasted)", flush=True)
        if event["event"] == "warning":
            print(f"step {event['step']}, {event['kind']}: {event['text']}", flush=True)
        elif event["event"] == "interruption":
            left = event["deadline_seconds"]
            when = "soon" if left is None else f"in {left:.0f} s"
            print(f"a machine is taken back {when}: the state is saved at once", flush=True)
        elif event["event"] == "checkpoint":
            self._told.discard("checkpoint")
        elif event["event"] == "checkpoint_failed":
            text = f"the checkpoint of step {event['step']} is tried again: {event['text']}"
            self._tell_once("checkpoint", text)

    def _tell_once(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            print(text, flush=True)

    def _book(self) -> None:
        """What was wasted, into the ledger, once; what it does not take stays due."""
        if self._run_context.mark_wasted is None:
            return
        for restart in self.account.restarts[self.account.booked :]:
            try:
                for began, ended in restart.wasted:
                    self._run_context.mark_wasted(_utc(began), _utc(ended), str(restart))
            except TurboVaedError as error:
                self._tell_once("ledger", f"waste is not in the ledger yet: {error}")
                return
            self._note("wasted", reason=str(restart), usd=plain(restart.usd))


def describe(account: Account) -> str:
    """A run in a line: loss, validation, dollars, time left, workers."""
    price, left, row = account.usd_per_tenth_db, account.seconds_left, account.row
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    if account.validations:
        parts.append(f"val {account.validations[-1].psnr:.2f} dB")
    if row:
        parts.append(f"{format_usd(Decimal(row['spent_usd']))} spent")
    if account.validations:
        parts.append(f"{NOTHING if price is None else format_usd(price)} per 0.1 dB")
    if left is not None:
        parts.append(f"{format_duration(left)} left")
    if account.workers:
        parts.append(f"{account.workers} worker{'' if account.workers == 1 else 's'}")
    return "  ".join(parts)


@contextmanager
def preparing(path: Path) -> Iterator[Callable[[str, int, int], None]]:
    """Tell the progress file at `path` of what comes before a `Follower`, and of its failure.

    Yields `tell(doing, done, clips)`: what is being made, in words, and how many of how many clips
    are there. Nothing is written before it is called.

    Raises:
        CorruptFile: what is at `path` is no progress file.
    """
    if path.is_file():
        for _ in read_events(path):
            pass
    lines = _Lines(path, failed=lambda said: print(said, flush=True))
    now: dict[str, Any] = {}

    def write(**facts: Any) -> None:
        now.update(event=PREPARING, at=time.time(), **facts)
        lines.add(now)

    def tell(doing: str, done: int, clips: int) -> None:
        began = {} if now.get("doing") == doing else {"began_at": time.time()}
        write(doing=doing, done=done, clips=clips, failed="", **began)

    try:
        yield tell
    except BaseException as error:
        if now:
            write(failed=str(error) or type(error).__name__)
        raise


NOTHING = "\N{EM DASH}"
"""Shown for a price of quality where nothing was gained."""


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


class _Lines:
    """JSON lines that are appended whole or not at all; a full disk delays them."""

    def __init__(self, path: Path, failed: Callable[[str], None]) -> None:
        self._path, self._failed = path, failed
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._size = path.read_bytes().rfind(b"\n") + 1  # a line cut short is written over
        self._due = b""

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line, and those that could not be written before."""
        self._due += json.dumps(row, default=str).encode() + b"\n"
        try:
            with self._path.open("r+b") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(self._due)
        except OSError as error:
            self._failed(f"{self._path} cannot be written, lines wait for room: {error}")
            return
        self._size += len(self._due)
        self._due = b""

    def clear(self) -> None:
        """Begin anew."""
        self._size, self._due = 0, b""
