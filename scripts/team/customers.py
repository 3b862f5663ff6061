"""Two small customers with a schedule, in a checkout of their own, and a run of each by the worker.

The teacher is the demo's, the videos are made on the spot; all servers are the stack's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import requests

from scripts.team.layout import BUCKET, USER, Layout
from tests.configs import override
from tests.e2e.checkout import TINY, make
from turbo_vaed.errors import Fault

CUSTOMERS = ("acme", "globex")
_RUN_SECONDS = 1800.0
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
_SCHEDULE = {"cron": "H 2 * * *", "timezone": "UTC"}


def run(layout: Layout, say: Callable[[str], None]) -> int:
    """Run both through; returns 0 where both came to an end that is no fault."""
    checkout = prepare(layout)
    _turbo_vaed(layout, checkout, "schedule", "sync")
    began, since = time.monotonic(), datetime.now(UTC)
    for customer in CUSTOMERS:
        _turbo_vaed(layout, checkout, "schedule", "run-now", customer)
    states = _ends(layout, since, say)
    say(f"both ended after {time.monotonic() - began:.0f} s")
    for customer, state in states.items():
        report = checkout / f"work/{customer}/report/report.html"
        say(f"{customer:10} {state:12} {report if report.is_file() else ''}")
    return 0 if set(states.values()) <= {"Passed", "Unchanged"} else 1


def prepare(layout: Layout) -> Path:
    """The checkout of the two, made at the first call; its DVC remote is the stack's S3."""
    checkout = layout.home / "checkout"
    if (checkout / ".ready").is_file():
        return checkout
    make(checkout)
    remote = ["remote", "add", "--force", "--default", "team", f"s3://{BUCKET}/dvc"]
    _run([sys.executable, "-m", "dvc", *remote], checkout, {})
    for customer in CUSTOMERS:
        added = ["customer", "add", customer, "--source", "videos", "--use-case", "education"]
        _turbo_vaed(layout, checkout, *added)
        override(checkout, customer, **TINY, schedule=_SCHEDULE)
    (checkout / ".ready").touch()
    return checkout


def _ends(layout: Layout, since: datetime, say: Callable[[str], None]) -> dict[str, str]:
    """The state in which the run of each customer ends that was asked for after `since`."""
    url = f"{layout.url('prefect')}/api/flow_runs/filter"
    login = (USER, layout.secrets["prefect_api"])
    wanted = {
        "deployments": {"name": {"any_": ["customers"]}},
        "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": 50,
    }
    states: dict[str, str] = {}
    deadline = time.monotonic() + _RUN_SECONDS
    while time.monotonic() < deadline:
        answer = requests.post(url, json=wanted, auth=login, timeout=30)
        answer.raise_for_status()
        asked = [one for one in answer.json() if not one["auto_scheduled"]]  # not for tonight
        for one in asked:
            customer, state = one["parameters"]["customer"], str(one["state_name"])
            if states.get(customer) != state:
                say(f"{customer:10} {state}")
            states[customer] = state
        if len(states) == len(CUSTOMERS) and all(one["state_type"] in _OVER for one in asked):
            return states
        time.sleep(2)
    raise Fault(f"no end after {_RUN_SECONDS:.0f} s: {states}; see {layout.home}/logs/worker.log")


def _turbo_vaed(layout: Layout, checkout: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "turbo_vaed.cli", *arguments]
    return _run(command, checkout, layout.client())


def _run(command: list[str], checkout: Path, given: dict[str, str]) -> str:
    own = ("TURBO_VAED_ROOT", "TURBO_VAED_RUN_ID")
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    found = subprocess.run(
        command, cwd=checkout, env={**inherited, **given}, capture_output=True, text=True
    )
    if found.returncode != 0:
        raise Fault(f"{' '.join(command[2:])} ended with {found.returncode}:\n{found.stderr}")
    return found.stdout
