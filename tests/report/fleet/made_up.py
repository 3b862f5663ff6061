"""A made-up fleet: a checkout with customers, their ledger, and the records on its site.

The first customers are one of each kind; the others passed, or nothing had changed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests import configs
from turbo_vaed.config.schema import ScheduleParams
from turbo_vaed.costs import Charge, Ledger
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.report.fleet import record
from turbo_vaed.report.fleet.record import Champion, GateValue, LastRun, Skipped
from turbo_vaed.report.fleet.site import Site
from turbo_vaed.runtime.processes import Process

NOW = datetime(2026, 11, 30, 6, 30, tzinfo=UTC)
NIGHTLY = ScheduleParams(cron="30 2 * * *", timezone="Europe/Berlin")
ELSEWHERE = Process(host="builder-2", machine="m", number=7041, began=1.0)
NAMES = (
    "acme", "brightcast", "cinemaker", "dashcam-europe", "edulight", "fieldnotes", "globex",
    "hooli-video", "initech", "jumpcut",
)  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "acme": {"outcome": "Passed", "result": "passes"},
    "brightcast": {
        "outcome": "GateFailed",
        "result": "fails",
        "sentence": "The package of brightcast is not good enough: 2 of 13 checks failed, mean "
        "PSNR required >= 22 dB, measured 21.93 dB; frames per second required >= 24, measured 19.",
    },
    "cinemaker": {
        "outcome": "Fault",
        "sentence": "distill ended with exit code 3:\nfault: a worker was lost three times; the "
        "cluster has no node that fits",
    },
    "dashcam-europe": {
        "outcome": "Refused",
        "sentence": "the estimate of $96.40 (82.10 to 121.00) does not fit budget.run_usd of $95",
    },
    "edulight": {"outcome": "Unchanged", "result": "inconclusive", "sentence": "Nothing changed."},
    "fieldnotes": {"outcome": "Unchanged", "result": "passes", "sentence": "Nothing changed."},
    "globex": {"outcome": "Stopped", "sentence": "distill was stopped (by ada on builder-1)"},
}
"""Customers of `NAMES` with something of their own; hooli-video's month is nearly spent."""


def names(count: int) -> list[str]:
    """So many customers."""
    return [*NAMES, *(f"customer-{i:03d}" for i in range(len(NAMES), count))][:count]


def checkout(root: Path, count: int) -> Path:
    """Files with so many customers, each with a schedule; returns it."""
    document = configs.read()
    demo = document["customers"]["demo"]
    document["customers"] = {
        name: {
            **demo,
            "schedule": {"cron": "H 2 * * *", "timezone": "Europe/Berlin"},
            "budget": {"customer_month_usd": 95 if name == "hooli-video" else 400},
        }
        for i, name in enumerate(names(count))
    }
    return configs.write(root, document)


def last_run(name: str, i: int, **changes: Any) -> LastRun:
    """How a customer's last run ended, by `SPECIAL`."""
    ended = NOW - timedelta(hours=3, minutes=7 * i % 170)
    run = f"{name}-{i:012x}"
    page = f"customers/{name}/runs/{run}/report.html"
    values: dict[str, Any] = {
        "customer": name,
        "outcome": "Unchanged" if i % 3 else "Passed",
        "result": "passes",
        "run": run,
        "began": ended - timedelta(minutes=3 + i % 50),
        "ended": ended,
        "sentence": "The package passes.",
        "usd": Decimal("1.25") * (1 + i % 60),
        "budget_usd": Decimal(95),
        "page": page,
        "report": page,
        "judged": ended.isoformat(),
        "checks": (
            GateValue(name="psnr", measured=28.4, limit=22.0, unit="dB", result="passes"),
            GateValue(name="fps", measured=None, limit=24.0, unit="", result="inconclusive"),
        ),
    }
    return LastRun(**(values | SPECIAL.get(name, {}) | changes))


def publish_records(site: Site, count: int) -> None:
    """The records of so many customers, but for the last of `NAMES`, who never ran."""
    for i, name in enumerate(names(count)):
        if name == "jumpcut":
            continue
        last = last_run(name, i)
        site.write(record.name_of(LastRun, name), record.encoded(last))
        champion = Champion(customer=name, version=None if i % 7 == 2 else 1 + i % 9, at=NOW)
        site.write(record.name_of(Champion, name), record.encoded(champion))
    skipped = Skipped(customer="acme", at=NOW - timedelta(hours=1), sentence="it was due at 2:17")
    site.write(record.name_of(Skipped, "acme"), record.encoded(skipped))


def charge(ledger: Ledger, name: str, run: str, usd: Decimal, at: datetime = NOW) -> None:
    """One charge of a customer."""
    ledger.add(
        Charge(
            run=run,
            customer=name,
            stage="distill",
            resource="node",
            market="local",
            quantity=Decimal(1),
            unit="node-second",
            unit_price_usd=usd,
            amount_usd=usd,
            started_at=at - timedelta(hours=4),
            ended_at=at - timedelta(hours=3),
            useful="useful",
            price_source="made up",
        )
    )


def fill_ledger(url: str, count: int) -> None:
    """Charges of this month; one run that goes on, and one of another machine that may be dead."""
    with Ledger.open(url) as ledger:
        for i, name in enumerate(names(count)):
            usd = Decimal("91.7") if name == "hooli-video" else Decimal("1.25") * (1 + i % 60)
            charge(ledger, name, f"{name}-{i:012x}", usd)
    with OpenRuns.open(url) as open_runs:
        for name in names(count)[4:6]:
            mine, _ = open_runs.acquire(name, ELSEWHERE)
            open_runs.beat(mine, run=f"{name}-now", step="distill")
