"""Which scheduled runs are skipped: those that start too late, or after the next one is due."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run

from turbo_vaed.config.load import load
from turbo_vaed.config.schema import ScheduleParams
from turbo_vaed.settings import Settings


def cron_of(customer: str, params: ScheduleParams) -> str:
    """The customer's cron expression, with a minute of its own for `H`: the same each time, and
    spread over the hour, so that thirty customers do not start at once."""
    minute, rest = params.cron.split(maxsplit=1)
    if minute == "H":
        digest = hashlib.sha256(customer.encode()).digest()
        minute = str(int.from_bytes(digest[:4]) % 60)
    return f"{minute} {rest}"


def why_this_is_skipped(settings: Settings, customer: str) -> str:
    """As `why_skipped`, of the flow's run that goes on here."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(flow_run.id)))
    if not run.auto_scheduled:
        return ""
    return why_skipped(load(settings.root, customer).schedule, run, customer, datetime.now(UTC))


def is_scheduled(flow_run_id: str) -> bool:
    """Whether a schedule made a run, and no person."""
    with get_client(sync_client=True) as client:
        return bool(client.read_flow_run(UUID(flow_run_id)).auto_scheduled)


def why_skipped(params: ScheduleParams | None, run: FlowRun, customer: str, now: datetime) -> str:
    """Why a scheduled run does not start any more; empty where it does.

    Args:
        run: of the flow; one that somebody asked for is never skipped.
        now: an aware time.
    """
    due = run.expected_start_time
    if params is None or due is None or not run.auto_scheduled:
        return ""
    late = now - due
    if late > timedelta(hours=params.max_late_hours):
        hours = late.total_seconds() / 3600
        return (
            f"it was due at {due:%Y-%m-%d %H:%M} UTC, {hours:.1f} h ago; "
            f"schedule.max_late_hours is {params.max_late_hours:g}"
        )
    if late < timedelta(minutes=1):  # no cron is due twice in one; asking loads Prefect's server
        return ""
    following = next_due(cron_of(customer, params), params.timezone, due)
    if following <= now:
        return (
            f"it was due at {due:%Y-%m-%d %H:%M} UTC, and the next one is due since "
            f"{following:%Y-%m-%d %H:%M} UTC"
        )
    return ""


def next_due(cron: str, timezone: str, after: datetime) -> datetime:
    """As Prefect's own scheduler finds it."""
    from prefect.server.schemas.schedules import CronSchedule

    schedule = CronSchedule(cron=cron, timezone=timezone)
    dates = asyncio.run(schedule.get_dates(n=1, start=after + timedelta(seconds=1)))
    return dates[0].astimezone(UTC)
