"""Schedules: when a team's Prefect runs the PoC of each customer, as params.yaml says.

One deployment serves all customers, with a schedule per customer, into a work pool of processes: a
worker on the controller runs what is due. A run that comes too late, or whose next one is due
already, is skipped at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType

from flows.late import cron_of
from flows.poc import poc_flow
from turbo_vaed.config.load import load, read
from turbo_vaed.config.schema import ScheduleParams
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.settings import ENVIRONMENT, Settings

DEPLOYMENT = "customers"
FULL_NAME = f"poc/{DEPLOYMENT}"
POOL = "turbo-vaed"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A customer's schedule in Prefect."""

    customer: str
    cron: str
    timezone: str
    is_paused: bool
    next_at: datetime | None
    """When it runs next; None while it is paused."""
    last: str
    """The state of the last run that was due; empty where there was none."""


def sync(settings: Settings) -> list[Row]:
    """Bring Prefect's schedules to what params.yaml says; a schedule that was paused stays so.

    Raises:
        UserError: no Prefect server is named, or a customer's params are not valid.
        Unreachable: it does not answer.
    """
    _require_server()
    found = _schedules(settings)
    with get_client(sync_client=True) as client:
        paused = {s.slug for s in _stored(client) if not s.active}
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    deployment = poc_flow.to_deployment(
        name=DEPLOYMENT,
        description="The PoC of each customer, when its schedule in params.yaml says.",
        schedules=[
            _schedule(name, params, is_active=name not in paused) for name, params in found.items()
        ],
        work_pool_name=POOL,
        job_variables={
            "working_dir": str(settings.root),
            "env": {**ENVIRONMENT, "TURBO_VAED_ROOT": str(settings.root)},
        },
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=["turbo-vaed"],
    )
    assert isinstance(deployment, RunnerDeployment), "not awaited"
    made = deployment.apply()
    assert isinstance(made, UUID), "not awaited"
    with get_client(sync_client=True) as client:  # a server keeps those that an update leaves out
        for one in _stored(client):
            if one.slug not in found:
                client.delete_deployment_schedule(made, one.id)
    return rows()


def rows() -> list[Row]:
    """The schedules as Prefect has them, by customer.

    Raises:
        UserError: no Prefect server is named.
    """
    _require_server()
    with get_client(sync_client=True) as client:
        deployment = _deployment(client)
        if deployment is None:
            return []
        runs = _runs(client, deployment.id)
        return [_row(one, runs) for one in sorted(_stored(client), key=lambda one: one.slug or "")]


def set_paused(customer: str, is_paused: bool) -> None:
    """Pause a customer's schedule, or resume it; params.yaml stays as it is.

    Raises:
        UserError: no Prefect server is named, or it has no schedule of the customer.
    """
    _require_server()
    with get_client(sync_client=True) as client:
        deployment = _deployment(client)
        found = [one for one in _stored(client) if one.slug == customer]
        if deployment is None or not found:
            raise UserError(
                f"Prefect has no schedule of {customer}; write customers.{customer}.schedule in "
                "params.yaml, then run: turbo-vaed schedule sync"
            )
        client.update_deployment_schedule(deployment.id, found[0].id, active=not is_paused)


def run_now(customer: str) -> str:
    """Ask for a run of a customer at once, by whichever worker is free; returns its name.

    Raises:
        UserError: no Prefect server is named, or nothing was synced to it.
    """
    _require_server()
    try:
        run = run_deployment(FULL_NAME, parameters={"customer": customer}, timeout=0)
    except ObjectNotFound:
        raise UserError("Prefect has no schedules; run: turbo-vaed schedule sync") from None
    assert isinstance(run, FlowRun)
    return str(run.name)


def _schedules(settings: Settings) -> dict[str, ScheduleParams]:
    """Of the customers that have one; all of them are checked before anything is changed."""
    found, wrong = {}, []
    for customer in map(str, read(settings.root).customers):
        try:
            params = load(settings.root, customer).schedule
        except TurboVaedError as error:
            wrong.append(str(error))
            continue
        if params is not None:
            found[customer] = params
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def _schedule(customer: str, params: ScheduleParams, *, is_active: bool) -> Schedule:
    return Cron(
        cron_of(customer, params),
        timezone=params.timezone,
        active=is_active,
        parameters={"customer": customer},
        slug=customer,
    )


def _require_server() -> None:
    if not PREFECT_API_URL.value():
        raise UserError(
            "schedules need a Prefect server that stays; set PREFECT_API_URL, for instance to "
            "http://127.0.0.1:4200/api of `prefect server start`"
        )


def _deployment(client: SyncPrefectClient) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(FULL_NAME)
    except ObjectNotFound:
        return None


def _stored(client: SyncPrefectClient) -> Iterable[DeploymentSchedule]:
    found = _deployment(client)
    return [] if found is None else client.read_deployment_schedules(found.id)


def _runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The newest runs of all customers, those to come first."""
    of_deployment = FlowRunFilter.model_validate({"deployment_id": {"any_": [str(deployment)]}})
    return client.read_flow_runs(
        flow_run_filter=of_deployment, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200
    )


def _row(schedule: DeploymentSchedule, runs: list[FlowRun]) -> Row:
    own = [run for run in runs if run.parameters.get("customer") == schedule.slug]
    to_come = [r.expected_start_time for r in own if r.state and r.state.is_scheduled()]
    begun = [run for run in own if run.state and not run.state.is_scheduled()]
    cron: Any = schedule.schedule
    return Row(
        customer=str(schedule.slug),
        cron=cron.cron,
        timezone=cron.timezone or "UTC",
        is_paused=not schedule.active,
        next_at=min((at for at in to_come if at is not None), default=None),
        last=str(begun[0].state_name) if begun else "",
    )
