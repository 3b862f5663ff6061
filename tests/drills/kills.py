"""A whole run that is killed at random, again and again: `turbo-vaed poc` in one of two checkouts,
on PostgreSQL, an MLflow server, S3, Prefect and a Ray cluster, until it has passed its gate.

A run that ends is started again, in the other checkout. The kills are spread over all of it: before
the training, a step or more after the last kill while it trains, and after it.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.drills import drills, faults, paid, servers, whole_runs
from tests.drills.paid import Life
from tests.drills.servers import Servers
from tests.e2e import checkout
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs import Ledger, total_usd
from turbo_vaed.costs.db.engine import connect
from turbo_vaed.costs.db.schema import OPEN_RUNS, RESERVATIONS
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.distill.checkpoints import Checkpoint, Store
from turbo_vaed.distill.events import read_events
from turbo_vaed.registry.client import open_tracking

KILLS = 50
BOUND = 1e-6
"""By which weights may differ: the sums of two workers have no order."""
STEPS = 600
TRAINING = {
    "steps": STEPS,
    "checkpoint_every": 10,
    "validate_every": 100,
    "micro_batch": 1,  # one worker sums the same two gradients as two workers do
    "precision": "fp32",  # auto: by a measurement
}
CUSTOMER = "tiny"
RUN, DRIVER, WORKER, RAYLET = "run", "driver", "worker", "raylet"
ABOUT = {
    RUN: "the process of `turbo-vaed poc`",
    DRIVER: "the process of its stage",
    WORKER: "a process of Ray's at work: a training worker, an actor that encodes",
    RAYLET: "the raylet of one of two machines",
    "Ray head": "the head of the Ray cluster",
    "PostgreSQL": "the server of the ledger's and MLflow's databases",
    "MLflow": "its server",
    "S3": "what answers for checkpoints, DVC's remote and MLflow's artifacts",
}
"""What is killed, by its name."""
_AWAY_SECONDS = {
    RAYLET: (15.0, 25.0),
    "Ray head": (0.0, 10.0),
    "PostgreSQL": (0.0, 10.0),
    "MLflow": (0.0, 20.0),
    "S3": (0.0, 15.0),
}
"""How long it stays away, from and to."""
_EARLY_SHARE, _LATE_SHARE = 0.1, 0.15
"""Of the kills, before the training and after it."""
_MOST_STEPS, _MOST_SECONDS = 25, 60.0
"""Between two kills while it trains."""
_TICK_SECONDS = 0.2
_LAST_STARTS = 3
"""With which an undisturbed run must come to its end, the one that was disturbed last included."""
_PATIENCE_SECONDS = 3600.0
_MARK = "TURBO_VAED_DRILL"
"""In the environment of all that a run and the servers start."""


@dataclass(frozen=True, kw_only=True)
class Survived:
    """What became of a run that was killed so often."""

    seed: int
    kills: Counter[str]
    """By what was killed."""
    at: Counter[str]
    """By the stage that ran; empty between two."""
    starts: int
    """Of `turbo-vaed poc`."""
    seconds: float
    """From the first start to the end."""
    charged_seconds: float
    """Of machines, in the ledger."""
    wasted_seconds: float
    charged_usd: Decimal
    wasted_usd: Decimal
    lost_seconds: float
    """That processes lived before they were killed, and that are in no charge."""
    doubled_seconds: float
    difference: float
    """The most by which a weight of the student differs from the undisturbed run's."""
    last_difference: float
    """The same of all that was trained, after the last step: the student is of the best one."""


class Observer:
    """Sees the processes of a run's stages come and go, by a thread."""

    def __init__(self) -> None:
        self.above: psutil.Process | None = None
        """The run's process."""
        self.killed: set[int] = set()
        """Processes of stages that were killed."""
        self._open: dict[psutil.Process, tuple[str, float]] = {}
        self._lives: list[Life] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stage(self) -> tuple[str, psutil.Process] | None:
        """The stage that runs below the run, and its process."""
        with self._lock:
            found = [(name, one) for one, (name, _) in self._open.items() if one.is_running()]
        return found[-1] if found else None

    def lives(self) -> list[Life]:
        """All that have ended."""
        with self._lock:
            return [*self._lives]

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            with self._lock:
                self._look()

    def _look(self) -> None:
        for process, (stage, began) in [*self._open.items()]:
            if not _is_alive(process):
                del self._open[process]
                is_killed = process.pid in self.killed
                life = Life(stage=stage, began=began, ended=time.time(), is_killed=is_killed)
                self._lives.append(life)
        with suppress(psutil.Error):
            for process in self.above.children(recursive=True) if self.above else ():
                with suppress(psutil.Error):
                    stage = _stage_of(process.cmdline())
                    known = {one.pid for one in self._open}
                    if stage and process.pid not in known and process.ppid() not in known:
                        self._open[process] = stage, process.create_time()


class Disturbed:
    """A run, and what is killed of it.

    Args:
        folder: for logs.
        roots: the two checkouts.
        mark: of the environment of its processes.
    """

    def __init__(
        self,
        folder: Path,
        roots: list[Path],
        on: Servers,
        *,
        kills: int,
        rng: random.Random,
        mark: str,
    ) -> None:
        self._folder, self._roots, self._on, self._rng = folder, roots, on, rng
        self._environment = {**on.environment, _MARK: mark}
        self._wanted = kills
        self.kills: Counter[str] = Counter()
        self.at: Counter[str] = Counter()
        self.starts = 0
        self.changes: list[float] = []
        """When machines came or were lost, Unix seconds."""
        self._back_at: dict[str, float] = {}
        self._read: dict[Path, int] = {}
        self._steps = 0  # seen since the first start, repeated ones among them
        self._is_trained = False
        self.observer = Observer()

    @property
    def root(self) -> Path:
        """The checkout of the last start."""
        return self._roots[(self.starts - 1) % len(self._roots)]

    def run(self) -> None:
        """Kill until there were enough, and let it come to its end.

        Raises:
            AssertionError: it does not, or ends otherwise.
        """
        began, last_starts, self._process = time.monotonic(), 0, self._start()
        is_due = self._next_moment()
        while True:
            time.sleep(_TICK_SECONDS)
            assert time.monotonic() - began < _PATIENCE_SECONDS, self._tail()
            self._bring_back()
            self._follow()
            left = self._wanted - self.kills.total()
            if self._process.poll() is not None:
                if self._process.returncode == 0:
                    assert not left, f"it ended {left} kills too early: it must train longer"
                    return
                if not left and not self._back_at:
                    last_starts += 1
                    assert last_starts < _LAST_STARTS, f"no end, undisturbed:\n{self._tail()}"
                    self._on.wait_until_ready()
                time.sleep(1.0)
                self._process = self._start()
            elif left and is_due() and self._kill():
                is_due = self._next_moment()

    def close(self) -> None:
        """End what runs."""
        with suppress(psutil.NoSuchProcess):
            above = psutil.Process(self._process.pid)
            for one in (*above.children(recursive=True), above):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self._process.wait()
        self.observer.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self._log().open("wb") as log:
            process = subprocess.Popen(
                checkout.command("poc", CUSTOMER),
                cwd=self.root,
                env=checkout.environment(self.root, **self._environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.observer.above = psutil.Process(process.pid)
        return process

    def _log(self) -> Path:
        return self._folder / f"run-{self.starts}.log"

    def _tail(self) -> str:
        return self._log().read_text(errors="replace")[-3000:]

    def _follow(self) -> None:
        """Count the steps that were trained."""
        path = self.root / "work" / CUSTOMER / "checkpoints/progress.jsonl"
        stage = self.observer.stage()
        if stage and STAGES.index(stage[0]) > STAGES.index("distill"):
            self._is_trained = True
        if not path.is_file():
            return
        size, known = path.stat().st_size, self._read.get(path, 0)
        with path.open("rb") as log:
            log.seek(known if known <= size else 0)  # another run began it anew
            found = log.read()
        self._read[path] = size
        self._steps += len(re.findall(rb'"event": "step"', found))

    def _next_moment(self) -> Callable[[], bool]:
        """Whether the moment of the next kill has come; drawn now."""
        now, done = time.monotonic(), self.kills.total()
        late = round(self._wanted * _LATE_SHARE)
        is_early = done < self._wanted * _EARLY_SHARE
        seconds = self._rng.uniform(1.0, 20.0 if is_early else 8.0)
        steps, by_steps = self._rng.randint(1, _MOST_STEPS), self._rng.random() < 0.3
        before = self._steps

        def is_due() -> bool:
            waited = time.monotonic() - now
            if is_early or self._is_trained:
                return waited > seconds
            if self._wanted - done <= late:
                return False
            if by_steps and waited < _MOST_SECONDS:
                return self._steps - before >= steps
            return waited > seconds

        return is_due

    def _kill(self) -> bool:
        """Kill what was killed least, of all that is there now; false where nothing is."""
        possible = self._possible()
        least = min((self.kills[name] for name in possible), default=0)
        names = [name for name in possible if self.kills[name] == least]
        if not names:
            return False
        name, stage = self._rng.choice(names), self.observer.stage()
        what = stage[0] if stage else ""
        with suppress(psutil.NoSuchProcess):
            possible[name]()
            self.kills[name] += 1
            self.at[what] += 1
            print(
                f"kill {self.kills.total()}: {name} at {what or 'no stage'}, start {self.starts}, "
                f"{self._steps} steps",
                flush=True,
            )
        if name in _AWAY_SECONDS:
            self._stay_away(name)
        return True

    def _stay_away(self, name: str) -> None:
        self._back_at[name] = time.monotonic() + self._rng.uniform(*_AWAY_SECONDS[name])
        if name in (RAYLET, "Ray head"):
            self.changes.append(time.time())

    def _possible(self) -> dict[str, Callable[[], None]]:
        """What there is to be killed now, and how."""
        found: dict[str, Callable[[], None]] = {RUN: self._process.kill}
        if stage := self.observer.stage():
            found[DRIVER] = lambda: self._kill_driver(stage[1])
        found |= {n: one.kill for n, one in self._on.all.items() if n not in self._back_at}
        if "Ray head" in self._back_at or RAYLET in self._back_at:
            found.pop("Ray head", None)
            return found
        machines = self._on.cluster.machines
        if at_work := machines.at_work():
            worker = self._rng.choice(sorted(at_work, key=lambda one: one.pid))
            found[WORKER] = worker.kill
        node = self._rng.choice(machines.nodes)
        found[RAYLET] = lambda: machines.kill_raylet(node)
        return found

    def _kill_driver(self, process: psutil.Process) -> None:
        self.observer.killed.add(process.pid)
        process.kill()

    def _bring_back(self) -> None:
        if "Ray head" not in self._back_at and self._on.cluster.machines.forget_lost():
            self._stay_away(RAYLET)  # Ray gave up a machine that was too busy to answer
        for name, at in [*self._back_at.items()]:
            if time.monotonic() < at:
                continue
            if name in (RAYLET, "Ray head"):
                self.changes.append(time.time())
            if name == RAYLET:
                self._on.cluster.machines.mend()
            else:
                self._on.all[name].start()
            if name in (RAYLET, "Ray head"):
                self.changes.append(time.time())
            del self._back_at[name]


def make(root: Path, shared: Path) -> Path:
    """A checkout whose customer distils for some minutes; returns it."""
    return whole_runs.make(root, shared, **TRAINING)


def carry_out(folder: Path, *, seed: int, kills: int = KILLS) -> Survived:
    """Kill a run so often, let it come to its end, and judge it.

    Args:
        folder: an empty one, which others may enter.
        seed: of what is killed when; the machine's own times are not repeated by it.

    Raises:
        AssertionError: the run broke a promise; the message names it.
    """
    mark = uuid.uuid4().hex
    with faults.environment({_MARK: f"servers {mark}"}):
        with servers.started(folder) as on:
            root, survived = _disturb(folder, on, seed=seed, kills=kills, mark=f"run {mark}")
            last = _last_state(root, on.environment["TURBO_VAED_CHECKPOINTS"])
        _check_nothing_is_left(f"servers {mark}")
    alone = folder / "alone"
    alone.mkdir()
    undisturbed = make(folder / "undisturbed", alone)
    finished = whole_runs.finish(undisturbed, alone)
    survived = replace(
        survived,
        difference=whole_runs.difference(root / "work" / CUSTOMER / "distill", finished),
        last_difference=drills.difference(
            last, _last_state(undisturbed, whole_runs.environment(alone)["TURBO_VAED_CHECKPOINTS"])
        ),
    )
    worst = max(survived.difference, survived.last_difference)
    assert worst <= BOUND, f"weights differ by {worst:g}"
    return survived


def _last_state(root: Path, url: str) -> Checkpoint:
    """After the last step of a run that came to its end in this checkout."""
    events = read_events(root / "work" / CUSTOMER / "checkpoints/progress.jsonl")
    job = [event["job"] for event in events if event["event"] == "open"][-1]
    found = Store(f"{url}/{CUSTOMER}/{job}").newest(on_trouble=lambda text: None)
    assert found is not None and found[1].step == STEPS, f"no state of step {STEPS} at {url}"
    return found[1]


def _disturb(
    folder: Path, on: Servers, *, seed: int, kills: int, mark: str
) -> tuple[Path, Survived]:
    """The checkout in which it came to its end, and what became of it."""
    shared = folder / "shared"
    shared.mkdir()
    roots = [make(folder / name, shared) for name in ("one", "other")]
    for root in roots:
        remote = ["remote", "add", "--force", "--default", "team", f"s3://{servers.BUCKET}/dvc"]
        subprocess.run([sys.executable, "-m", "dvc", *remote], cwd=root, check=True)
    began = time.monotonic()
    run = Disturbed(folder, roots, on, kills=kills, rng=random.Random(seed), mark=mark)
    try:
        run.run()
    finally:
        run.close()
    seconds = time.monotonic() - began
    (other,) = [root for root in roots if root != run.root]
    broken: list[str] = []

    @contextmanager
    def promised() -> Iterator[None]:
        try:
            yield
        except AssertionError as error:  # the others are worth knowing, too
            broken.append(str(error))

    with promised():
        _check_nothing_is_left(mark)
    with promised():
        again = checkout.turbo_vaed(other, "poc", CUSTOMER, **on.environment)  # posts its outbox
        assert "Nothing has changed" in again.stdout, again.stdout[-2000:] + again.stderr[-2000:]
    with promised():
        pending = [path for root in roots for path in (root / "state/due").glob("*")]
        assert not pending, f"charges that no ledger took: {pending}"
    with promised():
        _check_ledger_is_closed(on)
    with promised():
        _check_tracking_is_closed(on)
    with promised():
        _check_registry(run.root, on)
    with Ledger.open(on.environment["TURBO_VAED_LEDGER_URL"]) as ledger:
        charges = ledger.charges(customer=CUSTOMER)
    of_machines = paid.of_machines(charges)
    doubled = paid.doubled_seconds(of_machines, servers.MACHINES + 1, run.changes)
    lost = 0.0
    with promised():
        assert len({one.run for one in charges}) == 1, "charges of several runs"
    with promised():
        assert doubled < 1.0, f"{doubled:.1f} machine-seconds were charged twice"
    with promised():
        lost = paid.lost_seconds(run.observer.lives(), of_machines)
    assert not broken, "\n".join(broken)
    wasted = [one for one in charges if one.useful == "wasted"]
    return run.root, Survived(
        seed=seed,
        kills=run.kills,
        at=run.at,
        starts=run.starts,
        seconds=seconds,
        charged_seconds=sum(float(one.quantity) for one in of_machines),
        wasted_seconds=sum(float(one.quantity) for one in wasted if one.unit == UNIT),
        charged_usd=total_usd(one.amount_usd for one in charges),
        wasted_usd=total_usd(one.amount_usd for one in wasted),
        lost_seconds=lost,
        doubled_seconds=doubled,
        difference=0.0,
        last_difference=0.0,
    )


def _check_nothing_is_left(mark: str) -> None:
    """No process of this environment runs within a minute."""
    give_up = time.monotonic() + whole_runs.SECONDS_TO_END
    while left := _marked(mark):
        assert time.monotonic() < give_up, f"left behind: {left}"
        time.sleep(0.5)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and _is_alive(process):
                found.append(process)
    return found


def _check_ledger_is_closed(on: Servers) -> None:
    """No reservation, no open run."""
    with connect(on.environment["TURBO_VAED_LEDGER_URL"]).connect() as ledger:
        reserved = ledger.execute(sa.select(RESERVATIONS)).all()
        is_open = OPEN_RUNS.c.ended_at.is_(None)
        running = ledger.execute(sa.select(OPEN_RUNS).where(is_open)).all()
    assert not reserved and not running, f"open in the ledger: {reserved}, {running}"


def _check_tracking_is_closed(on: Servers) -> None:
    """Nothing is running in MLflow or Prefect."""
    client = open_tracking(on.mlflow_url)
    experiments = [one.experiment_id for one in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    assert not running, f"open in MLflow: {[one.info.run_name for one in running]}"
    flow_runs = checkout.flow_runs(on.environment["PREFECT_API_URL"])
    ends = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
    states = Counter(one["state_type"] for one in flow_runs)
    assert states.keys() <= ends, f"open in Prefect: {states}"


def _check_registry(root: Path, on: Servers) -> None:
    """One version, the champion, with its bytes and verdict."""
    client = open_tracking(on.mlflow_url)
    versions = client.search_model_versions(f"name = 'turbo-vaed-{CUSTOMER}'")
    assert [one.status for one in versions] == ["READY"], f"versions: {versions}"
    audit = checkout.turbo_vaed(root, "registry", "audit", CUSTOMER, **on.environment)
    assert audit.returncode == 0 and "champion" in audit.stdout, audit.stdout + audit.stderr


def _stage_of(command: list[str]) -> str:
    """The stage that a process runs by its command; empty for another process."""
    for program, verb, stage, customer in zip(
        command, command[1:], command[2:], command[3:], strict=False
    ):
        if program.endswith("turbo-vaed") and (verb, customer) == ("stage", CUSTOMER):
            return stage if stage in STAGES else ""
    return ""


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
