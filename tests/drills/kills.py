"""A whole run that is killed at random, again and again: `turbo-vaed poc` in one of two checkouts,
on PostgreSQL, an MLflow server, S3, Prefect and a Ray cluster, until it has passed its gate.

A run that ends is started again, in the other checkout. The kills are spread over all of it: before
the training, a step or more after the last kill while it trains, and after it.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.drills import drills, faults, paid, servers, whole_runs
from tests.drills.disturbed import CUSTOMER, MARK, Disturbed, is_alive
from tests.drills.servers import Servers
from tests.e2e import checkout
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
    with faults.environment({MARK: f"servers {mark}"}):
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
            if process.environ().get(MARK) == mark and is_alive(process):
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
