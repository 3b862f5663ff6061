"""A run of `turbo-vaed poc` that is killed at random, with what it stands on, and started again in
the other one of its checkouts each time; and the observer of its stages' processes."""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.drills.paid import Life
from tests.drills.servers import Servers
from tests.e2e import checkout
from turbo_vaed.config.stages import STAGES

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
MARK = "TURBO_VAED_DRILL"
"""In the environment of all that a run and the servers start."""


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
            if not is_alive(process):
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
        self._environment = {**on.environment, MARK: mark}
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


def _stage_of(command: list[str]) -> str:
    """The stage that a process runs by its command; empty for another process."""
    for program, verb, stage, customer in zip(
        command, command[1:], command[2:], command[3:], strict=False
    ):
        if program.endswith("turbo-vaed") and (verb, customer) == ("stage", CUSTOMER):
            return stage if stage in STAGES else ""
    return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and is no zombie."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
