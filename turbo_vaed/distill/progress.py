"""Progress of a distillation: what its driver does with events, and its status from outside.

The event log outlives its driver. A driver that starts anew reads it, books what the run before it
wasted, and continues it.
"""

from __future__ import annotations

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
from turbo_vaed.distill.events import PREPARING, Event, RunProgress, read_progress
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.runtime.files import JsonLines
from turbo_vaed.runtime.progress import format_duration, progress

SAMPLES = "samples"
"""Folder of the pictures, next to the event log."""
FRESH_SECONDS = 120.0
"""A run without an event for longer may be gone; a restart of workers takes up to a minute."""
FIRST_HORIZON_SECONDS, MIN_HORIZON_SECONDS = 600.0, 60.0
_RECENT_STEPS = 100
_METRICS = ("loss", "loss_", "val_", "learning_rate", "step_seconds", "spent_usd")
"""How the names of a step's metrics begin."""
_ENDS = {
    "budget": "stopped by the budget",
    "good enough": "stopped early",
    "interrupted": "interrupted, its checkpoint saved",
}
"""States in words, where they differ."""
_NO_GAIN = "\N{EM DASH}"
"""In place of a price of quality where nothing was gained."""


class ProgressRecorder:
    """Handles the events of a run, in order, from one thread; a context manager.

    They go to the event log, the progress bar, the console, the tracker of metrics and, for what
    restarts wasted, the ledger.
    """

    def __init__(
        self,
        path: Path,
        *,
        job: str,
        steps: int,
        usd_per_hour: Decimal,
        run_context: RunContext,
        on_checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            path: of the event log.
            job: its name; another name is another student.
            steps: planned.
            usd_per_hour: of all nodes of the run together.
            run_context: takes metrics, pictures and waste.
            on_checkpoint: called when one was written and logged.

        Raises:
            CorruptFile: what is at `path` is no event log.
        """
        self._run_context, self._samples = run_context, path.parent / SAMPLES
        self._on_checkpoint = on_checkpoint
        self._steps = steps
        self._opening = {"job": job, "steps": steps, "usd_per_hour": plain(usd_per_hour)}
        self._printed: set[str] = set()
        self._driver_began_at: float | None = None  # with its first workers
        self._workers_began_at = math.inf  # the last ones
        self._bar = ExitStack()
        self._update_bar: Callable[[int, str], None]
        self._log = JsonLines(path, on_error=lambda text: self._print_once("event log", text))
        self.run = read_progress(path)

    @property
    def horizon_seconds(self) -> float:
        """How long the workers may go on before they hear of the budget again.

        Twice the longest time between two recent steps, with a validation and a save in between:
        they hear every few seconds, but later from a busy driver. `FIRST_HORIZON_SECONDS` until
        these workers have done two steps, since the first takes longest.
        """
        times = list(self.run.reached.values())[-_RECENT_STEPS:]
        reached = [at for at in times if at >= self._workers_began_at]
        if len(reached) < 2:
            return FIRST_HORIZON_SECONDS
        longest = max(after - before for before, after in pairwise(reached))
        return max(MIN_HORIZON_SECONDS, 2 * longest)

    def __enter__(self) -> Self:
        self._record("open", **self._opening)
        bar = progress("distill: step", self._steps, has_own_estimate=True)
        self._update_bar = self._bar.enter_context(bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        is_interrupted = isinstance(error, KeyboardInterrupt)
        if is_interrupted and self.run.ended is None:
            self._record("failed", text="interrupted before the workers could save")
        elif error is not None and not is_interrupted:
            self._record("failed", text=str(error) or type(error).__name__)
        self._book_waste()

    def on_event(self, event: Event) -> None:
        """Handle the next event of rank 0."""
        kind, known_restarts = event["event"], len(self.run.restarts)
        if kind == "start" and self.run.ended and event["resumed_from"] is None:
            self._start_over()
        if kind == "picture":
            event = self._save_picture(event)
        self._add(event)
        for restart in self.run.restarts[known_restarts:]:
            print(
                f"{restart} (wasted: {restart.lost_steps} steps, {restart.seconds:.1f} s, "
                f"{format_usd(restart.usd)})",
                flush=True,
            )
        match kind:
            case "start":
                self._workers_began_at = event["at"]
                self._driver_began_at = self._driver_began_at or event["at"]
                self._book_waste()  # not with every step: a ledger may be slow
            case "step" | "validated":
                self._log_metrics(event)
            case "checkpoint":
                self._printed.discard("checkpoint")
                self._book_waste()
                self._mark_useful(self.run.reached.get(event["step"], float(event["at"])))
                self._on_checkpoint()
            case "checkpoint_failed":
                text = f"the checkpoint of step {event['step']} is retried: {event['text']}"
                self._print_once("checkpoint", text)
            case "warning":
                print(f"step {event['step']}, {event['kind']}: {event['text']}", flush=True)
            case "interruption":
                left = event["deadline_seconds"]
                when = "soon" if left is None else f"in {left:.0f} s"
                print(f"a machine will be reclaimed {when}: saving a checkpoint now", flush=True)
            case "end" if event["stopped"] == "diverged":
                self._mark_useful(event["at"])
        self._update_bar(self.run.step, headline(self.run))

    def summary(self) -> dict[str, Any]:
        """For the run's history: `workers`, `device`, `precision` and `compiled` of the last group
        of workers, `warnings`, `restarts` and `usd_per_tenth_db`."""
        price = self.run.recent_usd_per_tenth_db
        restarts = [
            {
                "step": restart.step,
                "lost_steps": restart.lost_steps,
                "seconds": round(restart.seconds, 3),
                "usd": plain(restart.usd),
                "reason": restart.reason,
            }
            for restart in self.run.restarts
        ]
        return {
            "workers": self.run.workers,
            **self.run.machine,
            "warnings": self.run.warnings,
            "restarts": restarts,
            "usd_per_tenth_db": None if price is None else f"{price:.8f}",
        }

    def _add(self, event: Event) -> None:
        self.run.add(event)
        self._log.append(event)

    def _record(self, kind: str, **facts: Any) -> None:
        """An event of the driver's own."""
        self._add({"event": kind, "at": time.time(), **facts})

    def _start_over(self) -> None:
        """The last run came to its end, and this one does not continue it."""
        self._log.clear()
        shutil.rmtree(self._samples, ignore_errors=True)
        self.run = RunProgress()
        self._record("open", **self._opening)

    def _save_picture(self, event: Event) -> dict[str, Any]:
        """The event with the picture's file in place of its bytes."""
        name = f"step-{event['step']:06d}.png"
        try:
            self._samples.mkdir(parents=True, exist_ok=True)
            (self._samples / name).write_bytes(event["png"])
        except OSError as error:
            self._print_once("samples", f"sample pictures cannot be saved: {error}")
        if self._run_context.log_picture is not None:
            self._run_context.log_picture(event["png"], name)
        facts = {key: value for key, value in event.items() if key != "png"}
        return {**facts, "file": f"{SAMPLES}/{name}"}

    def _log_metrics(self, event: Event) -> None:
        if self._run_context.log_metrics is None:
            return
        metrics = {key: float(v) for key, v in event.items() if key.startswith(_METRICS)}
        metrics["workers"] = float(self.run.workers)
        price = self.run.recent_usd_per_tenth_db
        if "val_psnr" in event and price is not None:
            metrics["usd_per_tenth_db"] = float(price)
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self._run_context.log_metrics(finite, event["step"])

    def _mark_useful(self, at: float) -> None:
        """Charges up to a checkpoint stay useful if the run fails later; of a run that has diverged
        none do, for its checkpoints are removed."""
        is_diverged = self.run.ended is not None and self.run.ended["stopped"] == "diverged"
        until = self._driver_began_at if is_diverged and self._driver_began_at else at
        if self._run_context.mark_useful_until is not None:
            self._run_context.mark_useful_until(_utc(until))

    def _book_waste(self) -> None:
        """Mark each restart's waste in the ledger, once; a ledger that is down gets it later."""
        if self._run_context.mark_wasted is None:
            return
        for restart in self.run.restarts[self.run.booked_restarts :]:
            try:
                for began, ended in restart.wasted:
                    self._run_context.mark_wasted(_utc(began), _utc(ended), str(restart))
            except TurboVaedError as error:
                self._print_once("ledger", f"waste is not in the ledger yet: {error}")
                return
            self._record("wasted", reason=str(restart), usd=plain(restart.usd))

    def _print_once(self, about: str, text: str) -> None:
        if about not in self._printed:
            self._printed.add(about)
            print(text, flush=True)


def headline(run: RunProgress) -> str:
    """A run in a line: loss, validation PSNR, dollars, time left, workers."""
    price, left, row = run.recent_usd_per_tenth_db, run.seconds_left, run.row
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    if run.validations:
        parts.append(f"val {run.validations[-1].psnr:.2f} dB")
    if row:
        parts.append(f"{format_usd(Decimal(row['spent_usd']))} spent")
    if run.validations:
        parts.append(f"{_NO_GAIN if price is None else format_usd(price)} per 0.1 dB")
    if left is not None:
        parts.append(f"{format_duration(left)} left")
    if run.workers:
        parts.append(f"{run.workers} worker{'' if run.workers == 1 else 's'}")
    return "  ".join(parts)


@contextmanager
def report_preparation(path: Path) -> Iterator[Callable[[str, int, int], None]]:
    """Log work that comes before a `ProgressRecorder`, and its failure, in the event log at `path`.

    Yields `report(activity, done, clips)`: what is being done, and how many of how many clips are
    done. Nothing is logged before it is called.

    Raises:
        CorruptFile: what is at `path` is no event log.
    """
    read_progress(path)
    log = JsonLines(path, on_error=lambda text: print(text, flush=True))
    last: dict[str, Any] = {}

    def write(**facts: Any) -> None:
        last.update(event=PREPARING, at=time.time(), **facts)
        log.append(last)

    def report(activity: str, done: int, clips: int) -> None:
        began = {} if last.get("doing") == activity else {"began_at": time.time()}
        write(doing=activity, done=done, clips=clips, failed="", **began)

    try:
        yield report
    except BaseException as error:
        if last:
            write(failed=str(error) or type(error).__name__)
        raise


def read_status(path: Path, *, customer: str, now: float) -> dict[str, Any]:
    """The status of the run with the event log at `path`: JSON values, dollars as text, None where
    nothing is known yet.

    Args:
        now: Unix seconds.

    Raises:
        UserError: there is no such file.
        CorruptFile: it is no event log.
    """
    if not path.is_file():
        raise UserError(
            f"no distillation of {customer} yet (there is no {path}); "
            f"run: turbo-vaed poc {customer}"
        )
    run = read_progress(path)
    preparation = run.preparation
    if preparation is not None and run.ended is not None:
        run = RunProgress(preparation=preparation)  # the figures are those of the run before
    silent = max(0.0, now - max(run.last_at, preparation.last_at if preparation else 0.0))
    state, reason = _state(run, silent)
    best = max(run.validations, key=lambda validation: validation.psnr, default=None)
    checkpoint = max(run.checkpoint_times, default=None)
    price = run.recent_usd_per_tenth_db
    return {
        "customer": customer,
        # preparing, starting, running, silent, failed, or how the run ended: finished, good
        # enough, budget, diverged
        "state": state,
        "reason": reason,
        "silent_seconds": silent,
        "doing": preparation.activity if preparation else "",
        "doing_seconds": max(0.0, now - preparation.began_at) if preparation else None,
        "done_clips": preparation.done if preparation else None,
        "clips": preparation.clips if preparation else None,
        "step": run.step,
        "steps": run.steps,
        "loss": run.row.get("loss"),
        "val_psnr": run.validations[-1].psnr if run.validations else None,
        "best_val_psnr": best.psnr if best else None,
        "best_step": best.step if best else None,
        "spent_usd": plain(Decimal(run.row["spent_usd"])) if run.row else None,
        "usd_per_tenth_db": None if price is None else plain(price),
        "seconds_left": run.seconds_left if state == "running" else None,
        "workers": run.workers,
        "checkpoint_step": checkpoint,
        "checkpoint_age_seconds": None
        if checkpoint is None
        else now - run.checkpoint_times[checkpoint],
        "checkpoint_error": run.checkpoint_error,
        "restarts": len(run.restarts),
        "lost_steps": sum(restart.lost_steps for restart in run.restarts),
        "wasted_seconds": sum(restart.seconds for restart in run.restarts),
        "wasted_usd": plain(sum((restart.usd for restart in run.restarts), Decimal(0))),
        "warnings": [f"step {w['step']}, {w['kind']}: {w['text']}" for w in run.warnings],
    }


def status_rows(status: Mapping[str, Any]) -> list[dict[str, str]]:
    """A table of what `read_status` returns: `what` and `value`, without what is not known yet."""

    def value(name: str, text: Callable[[Any], str]) -> str:
        return "" if status[name] is None else text(status[name])

    def usd(text: str) -> str:
        return format_usd(Decimal(text))

    state = _ENDS.get(status["state"], status["state"])
    if status["reason"]:
        state += f": {status['reason']}"
    if status["state"] == "silent":
        state = f"silent for {format_duration(status['silent_seconds'])}"
    if status["doing"]:
        state += f" ({status['doing']}, started {format_duration(status['doing_seconds'])} ago)"
    price = value("usd_per_tenth_db", usd)
    table = {
        "state": state,
        "clips done": value("clips", lambda clips: f"{status['done_clips']} of {clips}"),
        "step": f"{status['step']} of {status['steps']}" if status["steps"] else "",
        "loss": value("loss", "{:.4f}".format),
        "validation PSNR": value("val_psnr", "{:.2f} dB".format),
        "best PSNR": value(
            "best_val_psnr", lambda psnr: f"{psnr:.2f} dB at step {status['best_step']}"
        ),
        "spent by the run": value("spent_usd", usd),
        "cost of the last 0.1 dB": price or (_NO_GAIN if status["steps"] else ""),
        "time left": value("seconds_left", format_duration),
        "workers": str(status["workers"] or ""),
        "last checkpoint": value(
            "checkpoint_age_seconds",
            lambda age: f"step {status['checkpoint_step']}, {format_duration(age)} ago",
        ),
        "checkpoint error": status["checkpoint_error"],
        "restarts": f"{status['restarts']}; wasted: {status['lost_steps']} steps, "
        f"{status['wasted_seconds']:.1f} s, {usd(status['wasted_usd'])}"
        if status["restarts"]
        else "none",
        "warnings": "\n".join(status["warnings"]) or "none",
    }
    return [{"what": what, "value": text} for what, text in table.items() if text]


def _state(run: RunProgress, silent_seconds: float) -> tuple[str, str]:
    """The state of the run, and the reason of a failure or an end."""
    is_silent = silent_seconds > FRESH_SECONDS
    if run.preparation is not None:
        if run.preparation.failure:
            return "failed", run.preparation.failure
        return ("silent" if is_silent else "preparing"), ""
    if run.failure:
        return "failed", run.failure
    if run.ended is not None:
        return str(run.ended["stopped"]), str(run.ended["reason"])
    if is_silent:
        return "silent", ""
    return ("running" if run.workers else "starting"), ""


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
