"""Three hundred customers' schedules on a real Prefect server: how long `turbo-vaed schedule sync`
takes, and whether over three nights every due run is taken exactly once.

Run: python bench/schedules.py [--help]. Its last line is JSON, also written to bench/results.

Real in the nights: the server (SQLite), its scheduler, which makes the runs of the nightly crons of
four time zones, the work pool's queue, the transitions of states by which two workers compete for
each run, and the code that decides whether a late run is skipped. Not real: the clock, for the two
workers are a loop that asks for what is due before a time that it moves on by ten minutes, and the
work, which is a state. So the scheduler's own marking of late runs is not in it, and no process is
started; bench/noop_runs.py does that.

What happens meanwhile: some customers are paused before the first night and more before the second;
one is removed before the third; `sync` runs again before each night; in the second night nobody
asks for nine hours, so that what is later than schedule.max_late_hours is skipped.
"""

from __future__ import annotations

import argparse
import contextvars
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from prefect.client.orchestration import SyncPrefectClient, get_client  # noqa: E402
from prefect.client.schemas.responses import SetStateStatus  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from prefect.states import Completed, Pending, Running  # noqa: E402

from bench.decode import cpu_name  # noqa: E402
from flows import schedule  # noqa: E402
from flows.late import cron_of, why_skipped  # noqa: E402
from tests import configs  # noqa: E402
from tests.e2e.checkout import prefect_server  # noqa: E402
from turbo_vaed.config.schema import ScheduleParams  # noqa: E402
from turbo_vaed.settings import Settings  # noqa: E402

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo")
NIGHTS = 3
STEP = timedelta(minutes=10)
OUTAGE_HOURS, MAX_LATE_HOURS = 9, 6.0


@contextmanager
def measured(figures: dict[str, float], name: str) -> Iterator[None]:
    """Wall seconds of the block, and CPU seconds of this process and of the server."""
    server = [p for p in psutil.Process().children() if "prefect" in " ".join(p.cmdline())]

    def cpu() -> list[float]:
        return [sum(p.cpu_times()[:2]) for p in (psutil.Process(), *server)]

    before, start = cpu(), time.perf_counter()
    yield
    figures[f"{name}_seconds"] = round(time.perf_counter() - start, 2)
    own, *servers = (now - then for now, then in zip(cpu(), before, strict=True))
    figures[f"{name}_client_cpu_seconds"] = round(own, 2)
    figures[f"{name}_server_cpu_seconds"] = round(sum(servers), 2)


@dataclass
class Team:
    """A checkout whose params.yaml has customers with nightly schedules."""

    root: Path
    customers: dict[str, ScheduleParams]
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings.from_environment(self.root)
        self.write()

    def write(self) -> None:
        """Write params.yaml."""
        document = configs.read()
        demo = document["customers"]["demo"]
        document["customers"] = {
            name: demo | {"schedule": vars(params) | {}} for name, params in self.customers.items()
        }
        configs.write(self.root, document)

    @classmethod
    def of(cls, root: Path, count: int) -> Team:
        """So many customers, over all time zones."""
        return cls(
            root,
            {
                f"customer-{i:03d}": ScheduleParams(
                    cron="H 2 * * *",
                    timezone=ZONES[i % len(ZONES)],
                    max_late_hours=MAX_LATE_HOURS,
                )
                for i in range(count)
            },
        )

    def due(self, customer: str, since: datetime, until: datetime) -> list[datetime]:
        """When a customer's runs are due, without any library that reads crons."""
        params = self.customers[customer]
        minute = int(cron_of(customer, params).split()[0])
        day = since.date() - timedelta(days=1)
        found = []
        while day <= until.date() + timedelta(days=1):
            at = datetime(day.year, day.month, day.day, 2, minute, tzinfo=ZoneInfo(params.timezone))
            found += [at.astimezone(UTC)] if since <= at < until else []
            day += timedelta(days=1)
        return found


def waiting(client: SyncPrefectClient, until: datetime) -> list[Any]:
    """Runs that a worker would be given at `until`."""
    answers = client.get_scheduled_flow_runs_for_work_pool(schedule.POOL, scheduled_before=until)
    runs = [one.flow_run for one in answers]
    return [run for run in runs if run.parameters.get("customer")]


def wait_for_scheduler(client: SyncPrefectClient, until: datetime, count: int) -> None:
    """Until Prefect's scheduler has made all runs up to a time."""
    deadline = time.monotonic() + 900
    deployment = client.read_deployment_by_name(schedule.FULL_NAME)
    while True:
        runs = schedule._runs(client, deployment, ["SCHEDULED"])
        found = sum(run.expected_start_time < until for run in runs)
        if found >= count:
            return
        assert time.monotonic() < deadline, f"{found} of {count} runs were made in 15 minutes"
        time.sleep(5)


def take(
    run: Any,
    params: ScheduleParams,
    at: datetime,
    workers: Sequence[SyncPrefectClient],
    taken: list[tuple[Any, str]],
) -> None:
    """As two workers that have both been given a run: each proposes to begin it."""
    with ThreadPoolExecutor(len(workers)) as pool:
        proposals = [
            pool.submit(
                contextvars.copy_context().run, worker.set_flow_run_state, run.id, Pending()
            )
            for worker in workers
        ]
    answers = [proposal.result().status for proposal in proposals]
    assert SetStateStatus.ACCEPT in answers, "nobody may have it"
    for _ in range(answers.count(SetStateStatus.ACCEPT)):
        name = "Skipped" if why_skipped(params, run, name_of(run), at) else "Unchanged"
        if name == "Unchanged":  # forced: by the server's clock it is not due
            workers[0].set_flow_run_state(run.id, Running(), force=True)
        workers[0].set_flow_run_state(run.id, Completed(name=name), force=True)
        taken.append((run, name))


def name_of(run: Any) -> str:
    """The customer of a run."""
    return str(run.parameters["customer"])


def nights(team: Team, *workers: SyncPrefectClient) -> dict[str, Any]:
    """Walk through the nights; the facts, which must hold."""
    client, begin = workers[0], datetime.now(UTC)
    ends = [begin + timedelta(days=night + 1) for night in range(NIGHTS)]
    names = list(team.customers)
    tenth = max(len(names) // 10, 1)
    paused_before = [names[:tenth], names[tenth : 2 * tenth], []]
    removed_before: list[list[str]] = [[], [], [names[-1]]]
    taken: list[tuple[Any, str]] = []
    expected: list[tuple[str, datetime]] = []
    paused: set[str] = set()
    params = dict(team.customers)
    at = begin
    for night, end in enumerate(ends):
        for name in paused_before[night]:
            schedule.set_paused(name, True)
            paused.add(name)
        for name in removed_before[night]:
            del team.customers[name]
        team.write()
        schedule.sync(team.settings)
        active = [name for name in team.customers if name not in paused]
        due = [(name, when) for name in active for when in team.due(name, at, end)]
        expected += due
        later = sum(len(team.due(name, end, ends[-1])) for name in active)
        wait_for_scheduler(client, ends[-1], len(due) + later)
        back = at + timedelta(hours=OUTAGE_HOURS) if night == 1 else at
        while at < end:
            at += STEP
            if at < back:
                continue
            while runs := waiting(client, at):
                for run in runs:
                    take(run, params[name_of(run)], at, workers, taken)
        print(f"night {night + 1}: {len(taken)} runs were taken so far", flush=True)
    found = Counter((name_of(run), run.expected_start_time) for run, _ in taken)
    wanted = Counter(expected)
    result = {
        "nights": NIGHTS,
        "due": len(expected),
        "taken": len(taken),
        "taken_twice": sum(count > 1 for count in found.values()),
        "missed": len(wanted - found),
        "not_due": len(found - wanted),
        "of_paused": sum(name_of(run) in set(names[:tenth]) for run, _ in taken),
        "skipped_as_too_late": sum(name == "Skipped" for _, name in taken),
        "unchanged": sum(name == "Unchanged" for _, name in taken),
    }
    wrong = {k: result[k] for k in ("taken_twice", "missed", "not_due", "of_paused") if result[k]}
    assert not wrong, wrong
    assert result["skipped_as_too_late"], "the outage was long enough for some"
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--customers", type=int, default=300)
    arguments.add_argument("--only-sync", action="store_true", help="no nights")
    arguments.add_argument("--out", type=Path, default=ROOT / "bench/results/schedules.json")
    given = arguments.parse_args()
    if not given.only_sync:  # runs of all nights at once; otherwise it makes three of each
        ahead = f"P{NIGHTS + 1}D"
        os.environ["PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME"] = ahead
    os.environ["TURBO_VAED_ALARM_WEBHOOK"] = "http://127.0.0.1:9/nobody"
    figures: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        prefect_server(Path(folder)) as server,
        temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}),
        get_client(sync_client=True) as worker,
        get_client(sync_client=True) as other,
    ):
        (root := Path(folder) / "checkout").mkdir()
        team = Team.of(configs.write(root, configs.read()), given.customers)
        with measured(figures, "first_sync"):
            schedule.sync(team.settings)
        with measured(figures, "unchanged_sync"):
            rows = schedule.sync(team.settings)
        assert len(rows) == given.customers
        print(json.dumps(figures), flush=True)
        facts: dict[str, Any] = {}
        if not given.only_sync:
            with measured(figures, "nights"):
                facts = nights(team, worker, other)
    result = {
        "customers": given.customers,
        **figures,
        **facts,
        "database": "sqlite",
        "load_average": round(os.getloadavg()[2], 1),
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("prefect", "sqlalchemy")},
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
