"""Runs that begin at the same moment on a team's servers: whether ledger, MLflow, DVC's
remote, Prefect and the site have all of each afterwards, and how long that takes.

Run: python bench/runs_at_once.py [--help]. Its last line is JSON, also written to bench/results.

Real: the servers, which are those of `make team` (PostgreSQL, S3, a Ray head, MLflow, Prefect), a
`turbo-vaed poc` per customer, half of them in one checkout and half in another, Git, DVC, and every
stage. Not real: training, which is a few steps in the stage's own process (bench/stub_training.py).
Videos and networks are as small as in tests/e2e. Each customer has videos of its own, every fifth
one asks for a quality that no student has, so that its gate fails, and each has a pace of steps as
if it had trained before, so that no run has to count FLOPs, for which it would keep 170 MB more.

Before the runs begin, one customer runs alone: `ratio` is the time of all runs at once over that
many times its time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.complete_runs import (  # noqa: E402
    ENDS,
    STEPS,
    Customer,
    check_dvc,
    check_ledger,
    check_mlflow,
    check_prefect,
    check_site,
    run,
)
from bench.decode import cpu_name  # noqa: E402
from scripts.team import __main__ as team  # noqa: E402
from scripts.team.layout import BUCKET, PORTS, Layout, find  # noqa: E402
from tests import configs  # noqa: E402
from tests.e2e import checkout  # noqa: E402
from tests.videos import make_video  # noqa: E402
from turbo_vaed.costs.db.schema import RESERVATIONS  # noqa: E402
from turbo_vaed.planning.history import PACE_FILE, pace_key  # noqa: E402
from turbo_vaed.runtime.files import write_json  # noqa: E402
from turbo_vaed.settings import Settings, set_environment_defaults  # noqa: E402
from turbo_vaed.workspace import Workspace  # noqa: E402

ALONE = "alone"
PARAMS: dict[str, dict[str, Any]] = checkout.TINY | {
    "distill": checkout.TINY["distill"]
    | {"steps": STEPS, "checkpoint_every": 1, "validate_every": 1, "weight_teacher": 0.0},
    "export": {"targets": ["onnx/fp32"]},  # lowered in seconds
    # As many runs as there are make any machine slow: what the gate finds must not depend on it.
    "thresholds": checkout.TINY["thresholds"] | {"min_fps": 1e-6, "max_latency_ratio": 1e9},
}
TOO_MUCH = PARAMS["thresholds"] | {"min_psnr": 99.0}
TOTAL_MONTH_USD = 10_000
"""For all runs' budgets, so that each has to reserve its own."""
LOOK_SECONDS = 5.0


@dataclass
class Load:
    """The most that was seen while runs went on."""

    memory_bytes: int = 0
    """Proportional set sizes of the runs' own processes, without those of servers and Ray."""
    processes: int = 0
    connections: int = 0
    """To PostgreSQL: runs and servers."""
    reservations: int = 0
    open_runs: int = 0
    least_available_bytes: int = field(default_factory=lambda: psutil.virtual_memory().available)
    """Of the machine's memory."""


@contextmanager
def stack(folder: Path) -> Iterator[Layout]:
    """A team's servers with all their data below a folder."""
    os.environ["TURBO_VAED_TEAM_HOME"] = str(folder)
    for name in PORTS:
        os.environ[f"TURBO_VAED_TEAM_{name.upper()}_PORT"] = "0"
    team.up()
    layout = find()
    assert layout is not None
    try:
        yield layout
    finally:
        team.down(layout, remove=True)


def make_checkouts(roots: Sequence[Path], customers: Sequence[Customer]) -> None:
    """A checkout with the customers, whose pipeline trains as a stub, and its clones, each with all
    videos."""
    first = checkout.make(roots[0])
    remote = ["remote", "add", "--force", "--default", "team", f"s3://{BUCKET}/dvc"]
    run([sys.executable, "-m", "dvc", *remote], first, {})
    template = (first / "dvc.yaml").read_text(encoding="utf-8")
    stub = f"{sys.executable} {ROOT / 'bench/stub_training.py'} stage distill"
    assert template.count("turbo-vaed stage distill") == 1
    (first / "dvc.yaml").write_text(template.replace("turbo-vaed stage distill", stub), "utf-8")
    document = configs.read(first)
    document["budget"]["total_month_usd"] = TOTAL_MONTH_USD
    document["customers"] = {}
    for number, customer in enumerate(customers):
        source = f"videos/{customer.name}"
        for take in range(2):
            path = first / source / f"{take}.mp4"
            make_video(path, frames=60, width=96, height=80, seed=2 * number + take)
        document["customers"][customer.name] = {
            "source": source,
            "use_case": "education",
            **PARAMS,
            **({"thresholds": TOO_MUCH} if customer.outcome == "GateFailed" else {}),
        }
    configs.write(first, document)
    (first / ".gitignore").write_text("/work\n/state\n/videos\n")
    run(["git", "add", "--all"], first, {})
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    run(["git", *who, "commit", "--quiet", "--message", "customers"], first, {})
    for root in roots[1:]:
        run(["git", "clone", "--quiet", str(first), str(root)], first, {})
        shutil.copytree(first / "videos", root / "videos")


def write_pace(customer: Customer) -> None:
    """As an earlier run with these params would have left it."""
    workspace = Workspace.load(customer.root, customer.name)
    key = pace_key(workspace.params.distill, Settings.from_environment(customer.root))
    steps = [{"step": step, "at": step / 10} for step in range(1, 21)]
    write_json(workspace.work / PACE_FILE, {"pace_key": key, "steps": steps}, indent=None)


def start(customer: Customer, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The customer's run, as somebody would start it from a terminal."""
    log = customer.root / "state" / f"{customer.name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        return subprocess.Popen(
            checkout.command("poc", customer.name),
            cwd=customer.root,
            env=checkout.environment(customer.root, **environment),
            stdout=output,
            stderr=output,
        )


@contextmanager
def watched(layout: Layout, load: Load) -> Iterator[None]:
    """Look every few seconds at what the runs take, until the block ends."""
    over = threading.Event()
    engine = sa.create_engine(layout.database("postgres", "postgres"))
    ledger = sa.create_engine(layout.database("ledger", "ledger"))

    def look() -> None:
        with engine.connect() as connection:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            found = connection.execute(sa.text(sql)).scalar_one()
            load.connections = max(load.connections, found)
        with ledger.connect() as connection:
            held = connection.execute(sa.select(sa.func.count()).select_from(RESERVATIONS))
            load.reservations = max(load.reservations, held.scalar_one())
            sql = "SELECT count(*) FROM open_runs WHERE ended_at IS NULL"
            load.open_runs = max(load.open_runs, connection.execute(sa.text(sql)).scalar_one())
        found, processes = 0, psutil.Process().children(recursive=True)
        for process in processes:
            try:
                found += process.memory_full_info().pss
            except (psutil.Error, FileNotFoundError):
                continue
        load.memory_bytes = max(load.memory_bytes, found)
        load.processes = max(load.processes, len(processes))
        available = psutil.virtual_memory().available
        load.least_available_bytes = min(load.least_available_bytes, available)

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        engine.dispose()
        ledger.dispose()


def run_all(
    customers: Sequence[Customer], environment: Mapping[str, str], minutes: float
) -> dict[str, float]:
    """Run all at once; what that took. Each must end with the exit code of its outcome."""
    cpu, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    runs = [start(customer, environment) for customer in customers]
    last_begun = time.perf_counter() - began
    try:
        for one in runs:
            one.wait(max(1.0, began + 60 * minutes - time.perf_counter()))
    finally:
        for one in runs:
            if one.poll() is None:
                one.terminate()
        for one in runs:
            one.wait(180)
    seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    wrong = [
        (customer.root / "state" / f"{customer.name}.log").read_text()[-2500:]
        for customer, one in zip(customers, runs, strict=True)
        if one.returncode != ENDS[customer.outcome]
    ]
    codes = Counter(one.returncode for one in runs)
    assert not wrong, f"exit codes {dict(codes)}; the logs:\n" + "\n=====\n".join(wrong)
    used = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {"seconds": seconds, "cpu_seconds": used, "last_begun_seconds": last_begun}


def measure(scratch: Path, count: int, minutes: float) -> dict[str, Any]:
    """Start the servers, run one customer alone and then all others at once, and check what came
    of it."""
    roots = [scratch / "checkout-1", scratch / "checkout-2"]
    customers = [
        Customer(
            name=f"customer-{number:02d}",
            root=roots[number % 2],
            outcome="GateFailed" if number % 5 == 1 else "Passed",
        )
        for number in range(count)
    ]
    alone = Customer(name=ALONE, root=roots[0], outcome="Passed")
    with stack(scratch / "team") as layout:
        environment = {**layout.client(), "TURBO_VAED_SITE": str(scratch / "site")}
        os.environ.update(layout.client())  # the checks are clients, too
        make_checkouts(roots, [alone, *customers])
        for each in (alone, *customers):
            write_pace(each)
        one, load = run_all([alone], environment, minutes), Load()
        print(json.dumps({"alone": one}), flush=True)
        with watched(layout, load):
            all_ = run_all(customers, environment, minutes)
        load_average = os.getloadavg()
        print(json.dumps({"at_once": all_, **vars(load)}), flush=True)
        everyone = [alone, *customers]
        assert not [p for p in psutil.Process().children(recursive=True)], "left behind"
        tasks = check_prefect(layout, everyone)
        facts = {
            **check_ledger(layout, everyone, tasks),
            **check_mlflow(layout, everyone),
            **check_dvc(layout, everyone, environment, scratch),
        }
        check_site(everyone, scratch / "site")
    assert load.reservations > 0 and load.open_runs > 0, "they were not looked at"
    return {
        "runs": count,
        "passed": sum(one.outcome == "Passed" for one in customers),
        "gate_failed": sum(one.outcome == "GateFailed" for one in customers),
        "seconds_of_one": round(one["seconds"], 1),
        "cpu_seconds_of_one": round(one["cpu_seconds"], 1),
        "seconds_at_once": round(all_["seconds"], 1),
        "cpu_seconds_at_once": round(all_["cpu_seconds"], 1),
        "last_begun_after_seconds": round(all_["last_begun_seconds"], 2),
        "ratio": round(all_["seconds"] / (count * one["seconds"]), 3),
        "checked_with_the_one": facts,
        "most_memory_of_runs_gb": round(load.memory_bytes / 1e9, 2),
        "least_available_memory_gb": round(load.least_available_bytes / 1e9, 2),
        "most_processes": load.processes,
        "most_connections": load.connections,
        "most_reservations": load.reservations,
        "most_open_runs": load.open_runs,
        "load_average": [round(one, 1) for one in load_average],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--minutes", type=float, default=60, help="the most that they may take")
    arguments.add_argument("--keep", action="store_true", help="leave checkouts and their logs")
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/runs_at_once.json")
    given = arguments.parse_args()
    set_environment_defaults()
    # PostgreSQL, which is not root, must be able to enter it.
    scratch = Path(tempfile.mkdtemp(prefix="turbo-vaed-runs-"))
    scratch.chmod(0o755)
    print(scratch, flush=True)
    try:
        found = measure(scratch, given.runs, given.minutes)
    finally:
        if not given.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    result = {
        **found,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("dvc", "mlflow", "prefect", "ray", "sqlalchemy")
        },
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
