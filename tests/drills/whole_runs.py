"""Whole runs that are stopped while they distil: `turbo-vaed poc` in one of two checkouts that have
a ledger, MLflow, DVC's remote and a place for checkpoints in common.

Each drill resumes, in the other checkout, what the one before it left, and the last run goes to its
end: its student must be that of a run which nobody stopped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from tests.e2e import checkout
from turbo_vaed.costs import Ledger
from turbo_vaed.distill.events import read_events
from turbo_vaed.metering.storage_charges import DISK
from turbo_vaed.models import load_decoder

STEPS = 400
SECONDS_TO_END = 60.0
"""Within which everything below a run must have ended."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run that distils."""

    root: Path
    process: subprocess.Popen[str]
    environment: Mapping[str, str]
    shared: Path
    """What the checkouts have in common."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to end a run."""

    name: str
    about: str
    end: Callable[[Running], None]
    exit_code: int = 130
    needs_server: bool = False
    """Whether it needs a Prefect server that stays."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a run that was stopped."""

    seconds: float
    """Until its process had ended."""
    seconds_to_last: float
    """Until the last process below it had."""
    at: float
    """Unix seconds, when the last process had."""
    at_step: int
    """The last one before it was stopped."""
    saved_step: int
    """0 where none was ever saved."""


def _signal_group(number: signal.Signals) -> Callable[[Running], None]:
    return lambda run: os.killpg(run.process.pid, number)


def _signal_process(number: signal.Signals) -> Callable[[Running], None]:
    return lambda run: os.kill(run.process.pid, number)


def _abort(run: Running) -> None:
    done = checkout.turbo_vaed(run.root, "runs", "abort", "tiny", **run.environment)
    assert done.returncode == 0 and "has ended" in done.stdout, done.stdout + done.stderr


def _cancel(run: Running) -> None:
    url = run.environment["PREFECT_API_URL"]
    (found,) = [one for one in checkout.flow_runs(url) if one["state_type"] == "RUNNING"]
    wanted = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    done = checkout.prefect_api(url, f"/flow_runs/{found['id']}/set_state", wanted)
    assert done["status"] == "ACCEPT"


WAYS = (
    Way(
        name="Ctrl-C",
        about="SIGINT to the whole foreground, as a terminal sends it.",
        end=_signal_group(signal.SIGINT),
    ),
    Way(
        name="terminal closed",
        about="SIGHUP to the whole foreground.",
        end=_signal_group(signal.SIGHUP),
    ),
    Way(
        name="supervisor's stop",
        about="SIGTERM to the run's process.",
        end=_signal_process(signal.SIGTERM),
    ),
    Way(name="aborted", about="`turbo-vaed runs abort`, from another process.", end=_abort),
    Way(
        name="cancelled in Prefect",
        about="The flow's state is set to Cancelling on a Prefect server.",
        end=_cancel,
        needs_server=True,
    ),
    Way(
        name="run killed",
        about="SIGKILL of the run's process alone.",
        end=_signal_process(signal.SIGKILL),
        exit_code=-signal.SIGKILL,
    ),
)


def make(root: Path, shared: Path, **changes: object) -> Path:
    """A checkout whose customer distils for a minute; returns it.

    Args:
        shared: what it has in common with others.
        changes: other params of the distillation.
    """
    checkout.make(root, remote=shared / "remote")
    added = checkout.turbo_vaed(
        root, "customer", "add", "tiny", "--source", "videos", "--use-case", "education"
    )
    assert added.returncode == 0, added.stderr
    longer = {"steps": STEPS, "checkpoint_every": 10 * STEPS, "validate_every": STEPS // 4}
    distill = checkout.TINY["distill"] | longer | changes
    checkout.override(root, **checkout.TINY | {"distill": distill})
    return root


def environment(shared: Path) -> dict[str, str]:
    """By which a run finds what the checkouts have in common."""
    return {
        "TURBO_VAED_LEDGER_URL": f"sqlite:///{shared}/ledger.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{shared}/mlflow.db",
        "TURBO_VAED_CHECKPOINTS": str(shared / "checkpoints"),
    }


def finish(root: Path, shared: Path) -> Path:
    """Run to the end; returns the folder of the student."""
    done = checkout.turbo_vaed(root, "poc", "tiny", **environment(shared))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return root / "work/tiny/distill"


def difference(one: Path, other: Path) -> float:
    """The largest of any weight of two students."""
    weights = [load_decoder(folder / "student").state_dict() for folder in (one, other)]
    return max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])


def check_is_one_run(root: Path, shared: Path, *, saved_before: float | None) -> None:
    """The history of the last run has every step, and checkpoints are charged without a gap from
    the first one on, in whichever checkout that was.

    Args:
        saved_before: Unix seconds at which a checkpoint was there; None: no stop left one.
    """
    history = json.loads((root / "work/tiny/distill/history.json").read_text())
    missing = {*range(1, STEPS + 1)} - {row["step"] for row in history["steps"]}
    assert not missing, f"{len(missing)} steps are not in the history: {min(missing)} …"
    with Ledger.open(environment(shared)["TURBO_VAED_LEDGER_URL"]) as ledger:
        stored = sorted((c.started_at, c.ended_at) for c in ledger.charges() if c.resource == DISK)
    is_late = saved_before is not None and stored[0][0].timestamp() > saved_before
    assert not is_late, f"checkpoints are charged from {stored[0][0]} only"
    for (_, until), (since, _) in pairwise(stored):
        assert since <= until, f"checkpoints are not charged from {until} to {since}"


def carry_out(way: Way, root: Path, shared: Path, *, after_step: int) -> Ended:
    """Run until it has done `after_step`, and end it.

    Raises:
        AssertionError: it ended in another way, too late, or left something open.
    """
    events, run_began = root / "work/tiny/checkpoints/progress.jsonl", time.time()
    with checkout.prefect_server(root) if way.needs_server else nullcontext({}) as server:
        log = root / "state" / "drill.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                checkout.command("poc", "tiny"),
                cwd=root,
                env=checkout.environment(root, **environment(shared), **server),
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,  # a foreground of its own
            )
        below: list[psutil.Process] = []
        try:
            while (step := _last_step(events, run_began)) < after_step:
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.1)
            below = psutil.Process(process.pid).children(recursive=True)
            began = time.monotonic()
            given = {**environment(shared), **server}
            run = Running(root=root, process=process, environment=given, shared=shared)
            way.end(run)
            code = process.wait(10 * SECONDS_TO_END)
            seconds = time.monotonic() - began
            _, alive = psutil.wait_procs(below, timeout=10 * SECONDS_TO_END)
            seconds_to_last, at = time.monotonic() - began, time.time()
        finally:
            for one in (process, *below):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        saved_step = _saved_step(shared)
        assert code == way.exit_code, log.read_text()[-2000:]
        assert not alive, f"left behind: {alive}"
        if way.exit_code == 130:
            assert seconds_to_last < SECONDS_TO_END, f"all ended after {seconds_to_last:.0f} s"
            assert saved_step >= step, f"stopped at step {step}, saved at {saved_step}"
            _check_nothing_is_open(run, log.read_text())
    return Ended(
        seconds=seconds,
        seconds_to_last=seconds_to_last,
        at=at,
        at_step=step,
        saved_step=saved_step,
    )


def _check_nothing_is_open(run: Running, output: str) -> None:
    """Ledger, MLflow, Prefect and report say that the run was stopped."""
    assert len(re.findall("^stopped: ", output, re.MULTILINE)) == 1, output
    for noise in ("Traceback", "ERROR   | prefect", "core_worker"):
        assert noise not in output, output
    with sqlite3.connect(run.shared / "ledger.db") as ledger:
        reserved = ledger.execute("select count(*) from holds").fetchone()
        is_open = ledger.execute("select ended_at is null from open_runs").fetchall()
        assert (reserved, is_open) == ((0,), [(0,)]), "reservations, and whether the run is open"
    with sqlite3.connect(run.shared / "mlflow.db") as mlflow:
        query = "select count(*) from runs where status = 'RUNNING'"
        assert mlflow.execute(query).fetchone() == (0,), "of runs still open in MLflow"
    page = (run.root / "work/tiny/report/report.html").read_text()
    assert "Stopped at distill" in page, "in the report"
    if "PREFECT_API_URL" in run.environment:
        last = checkout.flow_runs(run.environment["PREFECT_API_URL"])[0]
        assert (last["state_type"], last["state_name"]) == ("CANCELLED", "Stopped")


def _last_step(path: Path, since: float) -> int:
    """The last step in an event log since that moment; -1 where none is."""
    events = read_events(path) if path.is_file() else ()
    return max((e["step"] for e in events if e["event"] == "step" and e["at"] > since), default=-1)


def _saved_step(shared: Path) -> int:
    names = (shared / "checkpoints/tiny").glob("distill-*/*.pt")
    return max((int(path.name.split("-")[0]) for path in names), default=0)
