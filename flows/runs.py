"""The record of a customer's current run: which charges belong together, and whether it is over."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from turbo_vaed.errors import Busy
from turbo_vaed.runtime import files
from turbo_vaed.settings import new_run_id

RUN_FILE = "run.json"
BEGUN_FILE = "begun.json"
"""Beside it: the last run, and since when it may distil which student."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One PoC run: from its first stage to its report, over as many tries as that takes."""

    run_id: str
    started: str
    """ISO 8601, UTC."""
    status: Literal["open", "done"]
    verdict_sha256: str = ""
    """Of the verdict that the run ended with: what a done run stands for."""
    alias: str = ""
    """What the run made of its version."""
    measures_again: bool = False
    """Whether the gate runs again although nothing has changed: its verdict was inconclusive."""

    @property
    def started_at(self) -> datetime:
        """When the run began."""
        return datetime.fromisoformat(self.started)


def read(work: Path) -> Run | None:
    """The last run of a customer, if there was one."""
    path = work / RUN_FILE
    return Run(**files.read_json(path)) if path.is_file() else None


def write(work: Path, run: Run) -> Run:
    """Record `run` as the customer's last one, atomically; returns it."""
    files.write_json(work / RUN_FILE, asdict(run), indent=None)
    return run


def fresh(customer: str) -> Run:
    """An open run that has just begun."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(run_id=new_run_id(customer), started=now, status="open")


def verdict_sha256(work: Path) -> str:
    """Of the verdict that lies in `work` now; empty where there is none."""
    path = work / "gate" / "verdict.json"
    return files.sha256_file(path) if path.is_file() else ""


@contextmanager
def customer_lock(work: Path, customer: str) -> Iterator[None]:
    """Only one flow works for a customer at a time.

    Raises:
        Busy: another one does.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another run for {customer} is in progress; wait for it to finish, or stop it "
                f"with: turbo-vaed runs abort {customer}"
            ) from None
        yield
