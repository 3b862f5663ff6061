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
from pathlib import Path

import psutil

POLL_SECONDS = 2.0
"""How late a process learns that its parent run has died."""
_PARENT = "TURBO_VAED_PARENT"
_PROC = Path("/proc")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of one machine; a later process with the same number is another one."""

    host: str
    """The machine's name, for people."""
    machine: str
    """Identifies the machine: its boot, and the namespace of process numbers."""
    number: int
    began: float
    """When it began, by a clock that nobody sets: on Linux ticks since the boot."""

    @classmethod
    def of(cls, number: int) -> Process:
        """A process of this machine that runs now.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        return cls(
            host=platform.node(), machine=_this_machine(), number=number, began=_began(number)
        )

    @classmethod
    def this(cls) -> Process:
        """The one that asks."""
        return cls.of(os.getpid())

    @property
    def is_local(self) -> bool:
        """Whether it is one of this machine, whose processes can be looked at."""
        return self.machine == _this_machine()

    def has_ended(self) -> bool:
        """Whether it was on this machine and has ended; false where it is another machine's."""
        if not self.is_local:
            return False
        try:
            is_zombie = psutil.Process(self.number).status() == psutil.STATUS_ZOMBIE
            return is_zombie or _began(self.number) != self.began
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"


def _this_machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:  # no Linux
        return platform.node()


def _began(number: int) -> float:
    try:
        stat = (_PROC / str(number) / "stat").read_text()
    except OSError:
        return psutil.Process(number).create_time()
    return float(stat[stat.rindex(")") :].split()[20])  # starttime; a name may hold anything


def environment_of_children() -> Mapping[str, str]:
    """The environment by which a child, and whatever it starts, ends with this process: see
    `ending_with_parent`."""
    return {_PARENT: json.dumps(asdict(Process.this()))}


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """In the block, this process sends itself SIGINT when its parent run has died: nobody waits for
    its work any more, and it is paid for. Without a parent it changes nothing, as for a command by
    hand."""
    given = os.environ.get(_PARENT)
    if given is None:
        yield
        return
    parent, over = Process(**json.loads(given)), threading.Event()

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            if parent.has_ended():
                _log.warning("%s has died; this process ends", parent)
                _discard_output()
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=poll, name="parent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _discard_output() -> None:
    """Whoever read this process's output has ended: a print must not end it before it has saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
