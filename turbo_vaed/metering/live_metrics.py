"""Logs curves and sample frames of a running stage to MLflow; if the server is down, the stage goes
on with a warning.

A background thread sends them, so that training never waits. The MLflow run is found again by its
tags when the PoC run goes on in another process.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from turbo_vaed.errors import TurboVaedError
from turbo_vaed.registry.client import (
    Point,
    experiment_id,
    find_or_create_run,
    log_points,
    open_tracking,
    translated_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVERY_SECONDS = 2.0
"""Between two attempts to send."""
AGAIN_SECONDS = 60.0
"""After an attempt that failed."""
LAST_SECONDS = 30.0
"""How long the end of a stage waits for the last attempt."""
MOST_POINTS = 200_000
"""The most that are buffered, some 50 MB; the oldest are dropped first."""


class LiveRun:
    """The MLflow run of one stage of a PoC run, open while the `with` block runs.

    It is created with the first value or picture, and ends as the block does: finished or failed.

    Args:
        uri: MLflow's tracking URI.
        run_id: of the PoC run.
        kind: of work, for a tag: the stage.
        warn: called once when MLflow fails, and at the end with what MLflow lacks.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        uri: str,
        *,
        customer: str,
        run_id: str,
        kind: str,
        warn: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uri, self._customer, self._name = uri, customer, f"{run_id} {kind}"
        self._tags = {"customer": customer, "turbo_vaed.run_id": run_id, "kind": kind}
        self._warn, self._clock = warn, clock
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._points: list[Point] = []
        self._pictures: list[tuple[bytes, str]] = []
        self._dropped = 0
        self._not_before = -math.inf
        self._is_warned = False
        self._client: MlflowClient | None = None
        self._run = ""
        self._status = "FINISHED"

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a step; returns at once."""
        now = round(time.time() * 1000)
        with self._lock:
            self._points += [Point(key, value, now, step) for key, value in values.items()]

    def log_picture(self, png: bytes, name: str) -> None:
        """Log a PNG as the artifact `samples/NAME`; returns at once."""
        with self._lock:
            self._pictures.append((png, name))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="live-metrics", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._status = "FINISHED" if error is None else ended
        self._over.set()
        self._thread.join(LAST_SECONDS)
        missing = self._dropped + len(self._points) + len(self._pictures)
        if missing or self._thread.is_alive():
            self._warn(f"MLflow lacks {missing} values and pictures of run {self._name}")

    def deliver(self) -> None:
        """Send what is buffered, unless MLflow failed less than `AGAIN_SECONDS` ago."""
        if (self._points or self._pictures) and self._clock() >= self._not_before:
            self._attempt(self._send)

    def _work(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self.deliver()
        self._attempt(self._finish)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            with translated_errors(self._uri):
                call()
        except Exception as error:  # whatever it is: logging never ends a run
            self._client, self._not_before = None, self._clock() + AGAIN_SECONDS
            with self._lock:
                surplus = max(0, len(self._points) - MOST_POINTS)
                del self._points[:surplus]
            self._dropped += surplus
            if not self._is_warned:
                self._is_warned = True
                cause = error if isinstance(error, TurboVaedError) else type(error).__name__
                self._warn(f"the run goes on, but its curves are not in MLflow yet: {cause}")

    def _send(self) -> None:
        client = self._client = self._client or open_tracking(self._uri)
        if not self._run:
            experiment = experiment_id(client, self._uri, self._customer)
            self._run = find_or_create_run(client, experiment, self._name, self._tags)
        points = self._points[:]  # others only ever append
        log_points(client, self._run, points)
        with self._lock:
            del self._points[: len(points)]
        while self._pictures:
            png, name = self._pictures[0]
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_bytes(png)
                client.log_artifact(self._run, f"{folder}/{name}", "samples")
            del self._pictures[0]

    def _finish(self) -> None:
        if self._points or self._pictures:
            self._send()
        if self._client is not None:
            self._client.set_terminated(self._run, self._status)
