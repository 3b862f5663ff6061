"""The record of a customer's current run: which charges belong together, and whether it is over."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from turbo_vaed.settings import new_run_id


@dataclass(frozen=True, kw_only=True)
class Run:
    """One PoC run: from its first stage to its report, over as many tries as that takes."""

    run_id: str
    started: str
    """ISO 8601, UTC."""
    status: Literal["open", "done"]

    @property
    def started_at(self) -> datetime:
        """When the run began."""
        return datetime.fromisoformat(self.started)


def read(work: Path) -> Run | None:
    """The last run of a customer, if there was one."""
    path = work / "run.json"
    return Run(**json.loads(path.read_text())) if path.is_file() else None


def write(work: Path, run: Run) -> Run:
    """Keep `run`, atomically."""
    work.mkdir(parents=True, exist_ok=True)
    partial = work / "run.json.partial"
    partial.write_text(json.dumps(asdict(run)) + "\n")
    os.replace(partial, work / "run.json")
    return run


def begin(work: Path, customer: str) -> Run:
    """A fresh, open run."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return write(work, Run(run_id=new_run_id(customer), started=now, status="open"))
