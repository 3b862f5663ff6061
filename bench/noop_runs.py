"""What a scheduled run takes that has nothing to do, with a real Prefect server and a real worker.

Run: python bench/noop_runs.py CHECKOUT CUSTOMER [--help]. Its last line is JSON, also written to
bench/results. The customer's last run must be done; copies of it become further customers of the
checkout (a scratch one), and the worker runs each of them once, two at a time. Every run must end
as Unchanged. `minutes_for_300_runs` is an extrapolation from the runs that were measured, and so is
`minutes_for_300_runs_by_cpu`: from their CPU seconds, as if both cores were free for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.decode import cpu_name  # noqa: E402
from tests.e2e.checkout import environment, flow_runs, prefect_server, turbo_vaed  # noqa: E402
from turbo_vaed.config import pipeline  # noqa: E402
from turbo_vaed.stages import params  # noqa: E402
from turbo_vaed.workspace import Workspace  # noqa: E402

AT_ONCE = 2


def copy_customer(root: Path, customer: str, name: str) -> None:
    """Make a customer whose last run is a copy of another one's."""
    shutil.copytree(root / "work" / customer, root / "work" / name, dirs_exist_ok=True)
    (root / "work" / name / "state.json").unlink(
        missing_ok=True
    )  # of the other's row in the ledger
    workspace = Workspace.load(root, name)
    pipeline.write(root, name, workspace.params.source)
    params.run(workspace)  # the rationale of a limit has the customer's name
    text = (root / "customers" / customer / "dvc.lock").read_text(encoding="utf-8")
    text = text.replace(f"work/{customer}/", f"work/{name}/")
    lock = yaml.safe_load(text)
    for stage, recorded in lock["stages"].items():
        recorded["cmd"] = f"turbo-vaed stage {stage} {name}"
        for dep in recorded["deps"]:
            if dep["path"].startswith(f"work/{name}/params/"):
                content = (root / dep["path"]).read_bytes()
                dep.update(md5=hashlib.md5(content).hexdigest(), size=len(content))
    path = root / "customers" / name / "dvc.lock"
    path.write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and of its children that have ended."""
    return float(sum(process.cpu_times()[:4]))


def measure(root: Path, names: list[str]) -> dict[str, Any]:
    """Let a worker run each of the customers once."""
    with prefect_server(root) as given:
        server = psutil.Process().children()[-1]
        turbo_vaed(root, "schedule", "sync", **given).check_returncode()
        for name in names:
            turbo_vaed(root, "schedule", "run-now", name, **given).check_returncode()
        start, server_before = time.perf_counter(), cpu_seconds(server)
        command = ["-m", "prefect", "worker", "start", "--pool", "turbo-vaed"]
        worker = subprocess.Popen(
            [sys.executable, *command, "--limit", str(AT_ONCE)],
            cwd=root,
            env=environment(root, TURBO_VAED_ROOT=str(root), **given),
            stdout=(root / "state/worker.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                time.sleep(1)
                runs = flow_runs(given["PREFECT_API_URL"])
                runs = [run for run in runs if run["parameters"].get("customer") in names]
                ended = [run for run in runs if run["state"]["type"] in ("COMPLETED", "FAILED")]
                assert worker.poll() is None, (root / "state/worker.log").read_text()
                if len(ended) == len(names):
                    break
            seconds = time.perf_counter() - start
            time.sleep(3)  # the last processes end
            worker_cpu = cpu_seconds(psutil.Process(worker.pid))
            server_cpu = cpu_seconds(server) - server_before
        finally:
            worker.terminate()
            worker.wait(60)
    names_of_states = {run["state"]["name"] for run in ended}
    assert names_of_states == {"Unchanged"}, names_of_states
    in_flow = [run["total_run_time"] for run in ended]
    count = len(names)
    cpu = worker_cpu + server_cpu
    return {
        "runs": count,
        "at_once": AT_ONCE,
        "seconds": round(seconds, 1),
        "seconds_per_run": round(seconds / count, 2),
        "seconds_in_the_flow": round(sum(in_flow) / count, 2),
        "worker_cpu_seconds_per_run": round(worker_cpu / count, 2),
        "server_cpu_seconds_per_run": round(server_cpu / count, 2),
        "minutes_for_300_runs": round(300 * seconds / count / 60, 1),
        "minutes_for_300_runs_by_cpu": round(300 * cpu / count / AT_ONCE / 60, 1),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("checkout", type=Path)
    arguments.add_argument("customer")
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/noop_runs.json")
    given = arguments.parse_args()
    root = given.checkout.resolve()
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    names = [f"copy-{number:03d}" for number in range(given.runs)]
    document["customers"] |= dict.fromkeys(names, document["customers"][given.customer])
    (root / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for name in names:
        copy_customer(root, given.customer, name)
    result = {
        **measure(root, names),
        "load_average": round(os.getloadavg()[1], 1),
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("prefect", "dvc", "mlflow", "sqlalchemy")},
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
