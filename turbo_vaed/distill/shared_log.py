"""The event log in the storage of checkpoints: whoever resumes a run in another checkout knows all
that came before.

The log of a customer lies on the disk of the driver. A copy of it lies beside the customer's
checkpoints, as they do, whole or not at all, and written by nobody but the run that holds the
customer. Where checkpoints have no storage of their own, the log is beside them already.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from turbo_vaed.distill.checkpoints import Store, backoff_seconds
from turbo_vaed.distill.events import events_in
from turbo_vaed.errors import Busy, CorruptFile
from turbo_vaed.runtime.files import atomic_file

COPY = "progress.jsonl"
"""Its name, beside the folders of the customer's jobs."""
EVERY_SECONDS = 60.0
"""Between two copies at most, while anything is logged. The next driver books time as wasted up to
where the log ends, so it is not copied with checkpoints alone."""
_PAUSES = 9.0
"""After each copy, so many times as long as it took: after 100,000 steps a log has 38 MB."""
_LAST_SECONDS, _LAST_SECONDS_AFTER_ERROR = 60.0, 15.0
"""How long the end waits for the last copy."""


@contextmanager
def shared_log(path: Path, url: str | None, *, token: int | None) -> Iterator[Callable[[], None]]:
    """Take the copy of the event log, where it is newer than the log at `path`, and keep it up to
    date until the block ends: once a minute, soon after a call of what is yielded, and at the end,
    which waits a minute for it at most. No failure to write it is raised.

    Args:
        url: of the customer's checkpoints; None: there is no copy.
        token: of the run, as `Store` has it.

    Raises:
        Busy: a later run has taken the place of this one.
        CorruptFile: what is at `path` is no event log.
        UserError, Unreachable: as `Store.claim`.
    """
    if url is None:
        yield lambda: None
        return
    store = Store(url, token=token)
    store.claim()
    if fetch_log(path, store):
        print(f"the training's progress so far is taken from {url}/{COPY}", flush=True)
    with _Copier(path, store) as copier:
        yield copier.copy_soon


def fetch_log(path: Path, store: Store, *, patience_seconds: float = 120.0) -> bool:
    """Put a store's copy in the place of the event log at `path`, if it goes on from it or its last
    event is newer; returns whether it was. A copy that is damaged is none.

    Args:
        patience_seconds: how long S3 is tried again.

    Raises:
        CorruptFile: what is at `path` is no event log.
        UserError, Unreachable: as `Store.get`.
    """
    try:
        copy = store.get(COPY, patience_seconds=patience_seconds)
    except FileNotFoundError:
        return False
    known = path.read_bytes() if path.is_file() else b""
    known_at = _last_at(known, path)
    try:
        copied_at = _last_at(copy, f"{store.url}/{COPY}")
    except CorruptFile as error:
        print(f"the progress of other checkouts is not known: {error}", flush=True)
        return False
    # A log that begins with all of the other one goes on from it, whatever the machines' clocks.
    goes_on = copy.startswith(known) and copy != known
    if not goes_on and (known.startswith(copy) or copied_at <= known_at):
        return False
    with atomic_file(path) as temporary:
        temporary.write_bytes(copy)
    return True


def _last_at(log: bytes, name: object) -> float:
    """The moment of the last event."""
    return max((float(event["at"]) for event in events_in(log, name)), default=0.0)


class _Copier:
    """Copies a log to a store, in a thread of its own, as `shared_log` says."""

    def __init__(self, path: Path, store: Store) -> None:
        self._path, self._store = path, store
        self._copied = (0, 0)  # size and time of the log at the last copy
        self._is_due, self._is_over = threading.Event(), threading.Event()
        self._failure = ""  # of the last try
        self._is_final = False
        self._give_up = 0.0
        self._thread = threading.Thread(target=self._work, name="log-copier", daemon=True)

    def copy_soon(self) -> None:
        self._is_due.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        patience = _LAST_SECONDS if error is None else _LAST_SECONDS_AFTER_ERROR
        self._give_up = time.monotonic() + patience
        self._is_over.set()
        self._is_due.set()
        self._thread.join(patience)
        if self._thread.is_alive():
            self._failure = "writing it takes too long"
        if self._failure:
            print(f"other checkouts do not see the end of its log: {self._failure}", flush=True)

    def _work(self) -> None:
        is_last = False
        while not is_last:
            self._is_due.wait(EVERY_SECONDS)
            self._is_due.clear()
            is_last = self._is_over.is_set()
            began = time.monotonic()
            self._try_copy()
            self._is_over.wait(_PAUSES * (time.monotonic() - began))
        failures = 0
        while self._failure and not self._is_final:
            delay = backoff_seconds(failures)
            if time.monotonic() + delay > self._give_up:
                return
            time.sleep(delay)
            self._try_copy()
            failures += 1

    def _try_copy(self) -> None:
        """Copy, and keep why it failed; whatever that is, the training goes on."""
        try:
            self._copy()
            self._failure = ""
        except Exception as error:
            if not self._failure and not self._is_over.is_set():
                print(f"other checkouts do not see its newest steps yet: {error}", flush=True)
            self._failure = str(error) or type(error).__name__
            self._is_final = isinstance(error, Busy)  # another run has taken this one's place

    def _copy(self) -> None:
        if not self._path.is_file():
            return
        found = self._path.stat()
        state = (found.st_size, found.st_mtime_ns)
        log = self._path.read_bytes()
        log = log[: log.rfind(b"\n") + 1]  # a line is being written
        if log and state != self._copied:
            self._store.put(COPY, log)
            self._copied = state
