"""Processes that others know by name: whether one still runs, and ending with it."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

LOOK_SECONDS = 2.0
"""How late a process learns that the one above it has died."""
_ABOVE = "TURBO_VAED_STARTED_BY"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of a machine, told apart from a later one of the same number."""

    host: str
    number: int
    began: float
    """Seconds since 1970."""

    @classmethod
    def of(cls, number: int) -> Process:
        """A process of this machine that runs now."""
        return cls(host=platform.node(), number=number, began=psutil.Process(number).create_time())

    @classmethod
    def this(cls) -> Process:
        """The one that asks."""
        return cls.of(os.getpid())

    def is_gone(self) -> bool:
        """Whether it was on this machine and runs no more; false where it is another machine's."""
        if self.host != platform.node():
            return False
        try:
            found = psutil.Process(self.number)
            return found.create_time() != self.began or found.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"


def environment_of_children() -> Mapping[str, str]:
    """What a process has to be started with to end with this one, by `ending_with_starter`."""
    return {_ABOVE: json.dumps(asdict(Process.this()))}


@contextmanager
def ending_with_starter() -> Iterator[None]:
    """In the block, this process is interrupted as by Ctrl-C once the one that had it started has
    died, however that was: nobody waits for its work any more, and it is paid for. Without one it
    changes nothing, as for a command by hand."""
    given = os.environ.get(_ABOVE)
    if given is None:
        yield
        return
    above, over = Process(**json.loads(given)), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            if above.is_gone():
                _log.warning("%s has died; this process ends", above)
                _let_nobody_read()
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=look, name="starter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _let_nobody_read() -> None:
    """Whoever read this process's output is gone: a print must not end it before it has saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
