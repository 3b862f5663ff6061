"""When customers run next: by a team's Prefect, or by params.yaml where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.late import cron_of
from turbo_vaed.report.fleet.facts import Plans, Scheduled
from turbo_vaed.report.fleet.status import Plan

DEPLOYMENT = "customers"
"""Of the flow `poc`, with a schedule per customer."""
FULL_NAME = f"poc/{DEPLOYMENT}"
_ANSWER_SECONDS = 10.0
_MOST_NAMED = 10
"""Customers of one note."""
Stored = dict[str, tuple[bool, datetime | None]]
"""Customer -> whether its schedule in Prefect is active, and since when it is there."""


def find_plans(customers: Sequence[Scheduled], now: datetime) -> Plans:
    """The next run of each customer, and notes on what is not known."""
    stored: Stored | None = None
    notes: list[str] = []
    if not customers:
        return {}, notes
    if not PREFECT_API_URL.value():
        notes.append(
            "Next runs are those of params.yaml: no Prefect server is named (PREFECT_API_URL), and "
            "nothing starts them here."
        )
    else:
        try:
            stored = _stored()
        except (httpx.HTTPError, PrefectException) as error:
            notes.append(
                "Next runs are those of params.yaml: the Prefect server at "
                f"{PREFECT_API_URL.value()} does not answer: {error or type(error).__name__}"
            )
    missing = [
        one.customer for one in customers if stored is not None and one.customer not in stored
    ]
    if missing:
        notes.append(
            f"Prefect has no schedule of {', '.join(missing[:10])}"
            f"{f' and {len(missing) - 10} more' if len(missing) > 10 else ''}; run: turbo-vaed "
            "schedule sync"
        )
    return asyncio.run(_plans(customers, stored, now)), notes


def _stored() -> Stored:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),  # a run that is over waits for it
        get_client(sync_client=True, httpx_settings={"timeout": _ANSWER_SECONDS}) as client,
    ):
        try:
            deployment = client.read_deployment_by_name(FULL_NAME)
        except ObjectNotFound:
            return {}
        found = client.read_deployment_schedules(deployment.id)
        return {str(one.slug): (one.active, one.created) for one in found}


async def _plans(
    customers: Sequence[Scheduled], stored: Stored | None, now: datetime
) -> dict[str, Plan]:
    found = {}
    for one in customers:
        if stored is None:
            found[one.customer] = Plan(next_at=await _due(one, now))
        elif one.customer in stored:
            is_active, since = stored[one.customer]
            found[one.customer] = Plan(
                next_at=await _due(one, now) if is_active else None,
                is_paused=not is_active,
                missed_at=await _missed(one, since, now) if is_active else None,
            )
    return found


async def _missed(one: Scheduled, since: datetime | None, now: datetime) -> datetime | None:
    """When a run was due first after the last one, where it would be skipped by now."""
    known = [at for at in (one.seen_at, since) if at is not None]
    if not known:
        return None
    due = await _due(one, max(known))
    is_late = due + timedelta(hours=one.params.max_late_hours) < now
    return due if is_late else None


async def _due(one: Scheduled, after: datetime) -> datetime:
    """As `flows.late.next_due`, of params that are checked already: checking takes longer."""
    from prefect.server.schemas.schedules import CronSchedule

    cron = CronSchedule.model_construct(
        cron=cron_of(one.customer, one.params), timezone=one.params.timezone, day_or=True
    )
    dates = await cron.get_dates(n=1, start=after + timedelta(seconds=1))
    return datetime.fromtimestamp(
        dates[0].timestamp(), UTC
    )  # Prefect's own type cannot be added to
