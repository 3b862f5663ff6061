"""The fault drills: each disturbs a run from outside and judges how it ended.

Every drill distils the toy job to its end and is judged by the same rules: no step lost beyond
the last checkpoint, the ledger's total untouched by what it marks as wasted, and weights equal to
those of a run that nothing disturbed.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.distill.conftest import write_toy_data
from tests.drills import faults, stage
from tests.drills.toy import CHECKPOINT_EVERY, STEPS
from turbo_vaed.costs import Ledger, total_usd
from turbo_vaed.distill.checkpoints import Checkpoint, Store
from turbo_vaed.distill.events import RunProgress, read_events
from turbo_vaed.distill.train import train_worker
from turbo_vaed.errors import CorruptFile

ONE_WORKER, TWO_WORKERS = 0.0, 1e-6
"""How far weights may lie from the undisturbed run's."""
_PATIENCE_SECONDS = 300.0
_CLOSING_USD = Decimal("1e-4")
"""The least that counts, 0.1 s at the toy's price: a driver that fails is charged, as wasted, from
its last event until its meter stops."""

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a drill cost."""

    seconds_lost: float
    """In which the machines were paid for and nothing came of it."""
    steps_lost: int
    """That were computed again."""
    wasted_usd: Decimal
    """In the ledger."""
    difference: float
    """The most by which a weight differs from the undisturbed run's."""
    starts: str
    """How many workers began at which step, in order."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A fault, and what is expected of a run that meets it."""

    name: str
    run: Callable[..., Checkpoint]
    """Takes a folder with the toy's data, and the machines if it is `on_ray`."""
    on_ray: bool = False
    bound: float = ONE_WORKER
    checkpoints_lost: int = 0
    """Those that the fault itself destroys."""

    @property
    def about(self) -> str:
        """What is done, in a sentence."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


def undisturbed(folder: Path) -> Checkpoint:
    """The run to compare with, one worker in this process."""
    write_toy_data(folder)
    return stage.run(folder, str(folder / "store"))


def carry_out(
    drill: Drill, folder: Path, reference: Checkpoint, machines: faults.Machines | None = None
) -> Outcome:
    """Run a drill in an empty folder, and judge it.

    Raises:
        AssertionError: the run broke a promise; the message names it.
    """
    write_toy_data(folder)
    state = drill.run(folder, machines) if drill.on_ray else drill.run(folder)
    progress, starts, waited_seconds = _read_progress(folder, drill.checkpoints_lost)
    rows = [row["step"] for row in state.history]
    assert (state.step, state.stopped, rows) == (STEPS, "finished", [*range(1, STEPS + 1)])
    with Ledger.open(stage.ledger_url(folder)) as ledger:
        charges = ledger.charges(run=stage.RUN)
    wasted = total_usd(c.amount_usd for c in charges if c.useful == "wasted")
    corrections = [c for c in charges if "wasted" in c.price_source]
    assert total_usd(c.amount_usd for c in corrections) == 0
    steps_lost = sum(restart.lost_steps for restart in progress.restarts)
    reported = total_usd(restart.usd for restart in progress.restarts)
    assert bool(wasted) == bool(reported), f"{wasted} USD wasted, {progress.restarts}"
    assert wasted <= reported + _CLOSING_USD, f"{wasted} USD wasted, {progress.restarts}"
    found = difference(state, reference)
    assert found <= drill.bound, f"weights differ by {found:g}"
    return Outcome(
        seconds_lost=sum(restart.seconds for restart in progress.restarts) + waited_seconds,
        steps_lost=steps_lost,
        wasted_usd=wasted,
        difference=found,
        starts=", ".join(f"{world} from {step}" for world, step in starts),
    )


def difference(state: Checkpoint, reference: Checkpoint) -> float:
    """The largest of any weight, EMA weight or best weight of two states."""
    return max(
        (ours[name] - theirs[name]).abs().max().item()
        for ours, theirs in (
            (state.student, reference.student),
            (state.ema, reference.ema),
            (state.best, reference.best),
        )
        for name in theirs
    )


def _read_progress(
    folder: Path, checkpoints_lost: int
) -> tuple[RunProgress, list[tuple[int, int]], float]:
    """The progress of a run, the workers and step of each of its starts, and how many seconds its
    end had to wait for its last checkpoint."""
    progress, starts, written = RunProgress(), [], [0]
    for event in read_events(stage.progress_file(folder)):
        progress.add(event)
        if event["event"] == "checkpoint":
            written.append(event["step"])
        if event["event"] == "start":
            found = event["resumed_from"] or 0
            known = sorted(set(written))[: -checkpoints_lost or None]
            if starts:
                assert found >= known[-1], f"went on from step {found}, not {known[-1]}"
            starts.append((event["world"], found))
    assert progress.ended is not None
    return progress, starts, max(0.0, progress.checkpoint_times[STEPS] - progress.ended["at"])


# --- faults that take no cluster -------------------------------------------------------------


def process_killed(folder: Path) -> Checkpoint:
    """SIGKILL of the only process, in the middle of a step; then it is started again."""
    _kill_in_a_step(folder)
    return stage.run(folder, _store(folder))


def checkpoint_cut_short(folder: Path) -> Checkpoint:
    """The same, and the newest checkpoint loses its second half."""
    _kill_in_a_step(folder)
    [store] = Path(_store(folder)).glob("distill-*")
    newest = store / Store(str(store)).names()[0]
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    return stage.run(folder, _store(folder))


def s3_down(folder: Path, seconds: float = 60.0) -> Checkpoint:
    """S3 answers 500 to everything for a minute, from the second checkpoint on."""
    with faults.FlakyS3.started("drill") as s3:

        def mend() -> None:
            time.sleep(seconds)
            while not s3.refused:  # on a busy machine the next checkpoint comes later
                time.sleep(0.05)
            s3.is_down = False

        over = threading.Thread(target=mend, daemon=True)

        def listen(event: Event) -> None:
            if event["event"] == "checkpoint" and event["step"] == 2 * CHECKPOINT_EVERY:
                s3.is_down = True
                over.start()

        through = stage.slowed(train_worker, seconds / (STEPS - 3 * CHECKPOINT_EVERY))
        state = stage.run(folder, "s3://drill/checkpoints", worker=through, listen=listen)
        over.join(60)
    assert s3.refused, "nothing was refused"
    return state


def nan_in_the_loss(folder: Path) -> Checkpoint:
    """A batch is read as NaN, as from bad memory: the step is tried again."""
    return stage.run(folder, _store(folder), worker=stage.poisoned(train_worker, read=25))


def chunk_missing(folder: Path) -> Checkpoint:
    """A training clip's chunk vanishes, the run ends; the chunk is put back, it is run again."""
    chunk = folder / "encode/latents.zarr/latents/c/1"
    aside = folder / "aside"

    def listen(event: Event) -> None:
        if event["event"] == "checkpoint" and event["step"] == 2 * CHECKPOINT_EVERY:
            chunk.rename(aside)

    try:
        stage.run(folder, _store(folder), worker=stage.forgetful(train_worker), listen=listen)
    except CorruptFile as error:
        assert "clip 1 is missing" in str(error), error
    else:
        raise AssertionError("a run without one of its clips came to its end")
    aside.rename(chunk)
    return stage.run(folder, _store(folder))


def disk_full(folder: Path) -> Checkpoint:
    """The disk of the checkpoints is full at the second one, and has room again two later."""
    failed: list[str] = []
    with faults.small_disk(folder / "disk", 64):
        ballast = folder / "disk/ballast"

        def listen(event: Event) -> None:
            if event["event"] == "checkpoint_failed":
                failed.append(event["text"])
            if event["event"] == "step" and event["step"] == 2 * CHECKPOINT_EVERY - 1:
                faults.fill(ballast)
            if event["event"] == "step" and event["step"] == 4 * CHECKPOINT_EVERY:
                ballast.unlink()

        state = stage.run(folder, str(folder / "disk/store"), listen=listen)
    assert failed and "No space left" in failed[0], failed
    return state


# --- faults of machines ----------------------------------------------------------------------


def worker_killed(folder: Path, machines: faults.Machines) -> Checkpoint:
    """SIGKILL of the only worker."""
    return _disturbed(folder, machines, 1, lambda: _kill_worker(machines))


def worker_of_two_killed(folder: Path, machines: faults.Machines) -> Checkpoint:
    """SIGKILL of one of two workers."""
    return _disturbed(folder, machines, 2, lambda: _kill_worker(machines))


def machine_lost(folder: Path, machines: faults.Machines) -> Checkpoint:
    """SIGKILL of the raylet of one of two machines, and of all below it, with no notice."""
    return _disturbed(folder, machines, 2, lambda: machines.lose(machines.in_use()))


def machine_taken_back(folder: Path, machines: faults.Machines) -> Checkpoint:
    """EC2's notice half a minute ahead, read by the node watcher; then the machine is lost."""

    def take_back() -> None:
        node, deadline = machines.in_use(), datetime.now(UTC) + timedelta(seconds=30)
        with faults.node_watcher(machines, node, deadline):
            time.sleep((deadline - datetime.now(UTC)).total_seconds())
            machines.lose(node)

    return _disturbed(folder, machines, 2, take_back, slow_seconds=0.8)


def driver_killed(folder: Path, machines: faults.Machines) -> Checkpoint:
    """SIGKILL of the driver; then it is started again."""
    driver = _start(folder, machines, 1)
    _wait_until(folder, driver, _is_well_under_way)
    faults.kill(driver.pid)
    driver.wait()
    return _finished(folder, _start(folder, machines, 1))


DRILLS = (
    Drill(name="process killed", run=process_killed),
    Drill(name="checkpoint cut short", run=checkpoint_cut_short, checkpoints_lost=1),
    Drill(name="S3 down", run=s3_down),
    Drill(name="NaN in the loss", run=nan_in_the_loss),
    Drill(name="data chunk missing", run=chunk_missing),
    Drill(name="disk full", run=disk_full),
    Drill(name="worker killed", run=worker_killed, on_ray=True),
    Drill(name="worker of two killed", run=worker_of_two_killed, on_ray=True, bound=TWO_WORKERS),
    Drill(name="machine lost", run=machine_lost, on_ray=True, bound=TWO_WORKERS),
    Drill(name="machine taken back", run=machine_taken_back, on_ray=True, bound=TWO_WORKERS),
    Drill(name="driver killed", run=driver_killed, on_ray=True),
)


# --- how -------------------------------------------------------------------------------------


def _store(folder: Path) -> str:
    return str(folder / "store")


def _is_well_under_way(events: list[Event]) -> bool:
    """Some steps beyond the second checkpoint."""
    return any(e["event"] == "step" and e["step"] == 2 * CHECKPOINT_EVERY + 4 for e in events)


def _kill_worker(machines: faults.Machines) -> None:
    worker = machines.workers(machines.in_use())[-1]
    faults.kill(worker.pid)


def _kill_in_a_step(folder: Path) -> None:
    process = _start(folder, None, 1)
    _wait_until(folder, process, _is_well_under_way)
    time.sleep(random.random())  # ten steps, and anywhere in one
    faults.kill(process.pid)
    process.wait()


def _disturbed(
    folder: Path,
    machines: faults.Machines,
    workers: int,
    disturb: Callable[[], None],
    slow_seconds: float = 0.1,
) -> Checkpoint:
    """A run on Ray that is disturbed once it is well under way."""
    machines.mend()
    driver = _start(folder, machines, workers, slow_seconds)
    try:
        _wait_until(folder, driver, _is_well_under_way)
        disturb()
        return _finished(folder, driver)
    finally:
        faults.kill(driver.pid)
        driver.wait()


def _start(
    folder: Path, machines: faults.Machines | None, workers: int, slow_seconds: float = 0.1
) -> subprocess.Popen[bytes]:
    """A process that distils the job of `folder`; alone where there are no machines."""
    command = [sys.executable, "-m", "tests.drills.stage", str(folder), _store(folder)]
    command += ["--workers", str(workers), "--slow-seconds", str(slow_seconds)]
    given = {}
    if machines is not None:
        command.append("--on-ray")
        given = {"RAY_ADDRESS": machines.address}
    with faults.environment(given), (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _wait_until(
    folder: Path, process: subprocess.Popen[bytes], condition: Callable[[list[Event]], bool]
) -> None:
    """Until the events of a run meet a condition."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    path = stage.progress_file(folder)
    while not (path.exists() and condition([*read_events(path)])):
        log = (folder / "driver.log").read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"the driver ended too early:\n{log}"
        assert time.monotonic() < give_up, f"the run does not come so far:\n{log}"
        time.sleep(0.05)


def _finished(folder: Path, driver: subprocess.Popen[bytes]) -> Checkpoint:
    """The last state of a run whose driver is awaited."""
    try:
        code = driver.wait(_PATIENCE_SECONDS)
    finally:
        faults.kill(driver.pid)
    log = (folder / "driver.log").read_text(errors="replace")[-3000:]
    assert code == 0, f"the driver ended with {code}:\n{log}"
    [store] = (p for p in Path(_store(folder)).glob("distill-*") if p.is_dir())
    found = Store(str(store)).newest(on_trouble=lambda text: None)
    assert found is not None
    return found[1]
