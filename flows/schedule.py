"""Schedules: when a team's Prefect runs the PoC of each customer, as params.yaml says.

One deployment serves all customers, with a schedule per customer, into a work pool of processes: a
worker on the controller runs what is due. A run that starts too late, or after the next one is
due, is skipped at no cost.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.schedules import Cron, Schedule
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings
from prefect.states import Completed
from prefect.types.entrypoint import EntrypointType

from flows import alarms
from flows.late import cron_of, next_due
from flows.maintenance import CRON, maintenance_flow
from flows.plans import DEPLOYMENT, FULL_NAME
from flows.poc import poc_flow
from turbo_vaed.config.load import load, read, resolve
from turbo_vaed.errors import TurboVaedError, Unreachable, UserError
from turbo_vaed.settings import Settings

POOL = "turbo-vaed"
_REQUEST_SECONDS = 600.0
_COMPARED = ("description", "tags", "entrypoint", "work_pool_name", "job_variables")
"""Fields by which a deployment has changed, beside its schedules; not its version, which Prefect
takes from git where the checkout has a remote."""
_POLL_SECONDS = 5.0
_PAGE = 200
"""Runs that Prefect gives at once."""
_MOST_RUNS = 2000
"""That are looked at for the last one of each customer."""


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
    with _patience(), server() as client:
        deployment = _deployment(client)
        stored = deployment.schedules if deployment else []
        paused = {one.slug for one in stored if not one.active}
        wanted = _schedules(settings, paused)
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        made, is_changed = _deployed(
            deployment,
            poc_flow,
            settings,
            name=DEPLOYMENT,
            description="The PoC of each customer, when its schedule in params.yaml says.",
            schedules=list(wanted.values()),
        )
        maintenance = _schedule_maintenance(client, settings)
        gone = [one for one in stored if one.slug not in wanted]
        for run in _late(client, deployment) if deployment and gone else ():
            _skip(client, run, "a schedule was removed")
        for one in gone:  # an update keeps those that it leaves out; all runs that wait go, too
            with suppress(ObjectNotFound):  # an update that replaced all has removed it
                client.delete_deployment_schedule(made, one.id)
        alarms.sync(client, settings, customers=made, maintenance=maintenance)
        return _rows(client, _deployment(client) if gone or is_changed else deployment)


def _schedule_maintenance(client: SyncPrefectClient, settings: Settings) -> UUID:
    name = "all"
    made, _ = _deployed(
        _deployment(client, f"{maintenance_flow.name}/{name}"),
        maintenance_flow,
        settings,
        name=name,
        description="Dead runs are settled.",
        schedules=[Cron(CRON, slug="all")],
    )
    return made


def _deployed(
    found: DeploymentResponse | None,
    flow: Flow[Any, Any],
    settings: Settings,
    *,
    name: str,
    description: str,
    schedules: list[Schedule],
) -> tuple[UUID, bool]:
    """Have a flow deployed into the pool, for the checkout, with these schedules among others;
    returns the deployment's id, and whether it was changed. Nothing is sent where `found`, as
    Prefect has it, is the same: at each update Prefect removes the runs that wait, and makes them
    again seconds later.
    """
    changed = _changed(schedules, [] if found is None else found.schedules)
    deployment = flow.to_deployment(
        name=name,
        description=description,
        schedules=changed,
        work_pool_name=POOL,
        job_variables={
            # A stop then reaches the run's process alone, which ends what is below it in order.
            "command": f"{sys.executable} -m prefect.engine",
            "working_dir": str(settings.root),
            "env": {"TURBO_VAED_ROOT": str(settings.root)},
        },
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=["turbo-vaed"],
    )
    assert isinstance(deployment, RunnerDeployment), "not awaited"
    if found is not None and not changed:
        differing = [k for k in _COMPARED if getattr(found, k) != getattr(deployment, k)]
        if not differing:
            return found.id, False
    try:
        made = deployment.apply()
    except DeploymentApplyError as error:
        raise Unreachable(
            f"the Prefect server at {PREFECT_API_URL.value()} does not take the schedules: {error}"
        ) from error
    assert isinstance(made, UUID), "not awaited"
    return made, True


def _changed(wanted: list[Schedule], stored: list[DeploymentSchedule]) -> list[Schedule]:
    """Those that Prefect lacks or has otherwise: an update keeps the ones that it leaves out. All,
    where one was made without a slug, as by hand in Prefect: an update then replaces all."""
    if any(one.slug is None for one in stored):
        return wanted
    known = {
        one.slug: (one.schedule.cron, one.schedule.timezone, one.parameters)
        for one in stored
        if isinstance(one.schedule, CronSchedule)
    }
    return [
        one for one in wanted if known.get(one.slug) != (one.cron, one.timezone, one.parameters)
    ]


def rows() -> list[Row]:
    """The schedules as Prefect has them, by customer.

    Raises:
        UserError: no Prefect server is named.
        Unreachable: it does not answer.
    """
    with _patience(), server() as client:
        return _rows(client, _deployment(client))


def set_paused(customer: str, is_paused: bool) -> None:
    """Pause a customer's schedule, with the runs that wait, or resume it; params.yaml stays as it
    is.

    Raises:
        UserError: no Prefect server is named, or it has no schedule of the customer.
        Unreachable: it does not answer.
    """
    with server() as client:
        deployment = _deployment(client)
        found = [one for one in deployment.schedules if one.slug == customer] if deployment else []
        if deployment is None or not found:
            raise UserError(
                f"Prefect has no schedule of {customer}; write customers.{customer}.schedule in "
                "params.yaml, then run: turbo-vaed schedule sync"
            )
        # Prefect's server empties the parameters of an update that leaves them out.
        client.update_deployment_schedule(
            deployment.id, found[0].id, active=not is_paused, parameters={"customer": customer}
        )
        if is_paused:
            for run in list(_runs(client, deployment, ["SCHEDULED"])):
                if run.parameters.get("customer") != customer or not run.auto_scheduled:
                    continue
                if run.state_name == "Late":
                    _skip(client, run, f"{customer} was paused")
                else:
                    client.delete_flow_run(run.id)


def run_now(settings: Settings, customer: str, *, patience_seconds: float = 0.0) -> FlowRun:
    """Ask for a run of a customer at once, by whichever worker is free.

    Args:
        patience_seconds: how long to wait for the first sync, which a controller does at boot.

    Raises:
        UserError: no such customer, no Prefect server is named, or nothing was synced to it.
        Unreachable: it does not answer.
    """
    load(settings.root, customer)
    deadline = time.monotonic() + patience_seconds
    with server():
        while True:
            try:
                run = run_deployment(FULL_NAME, parameters={"customer": customer}, timeout=0)
            except ObjectNotFound:
                if time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    continue
                raise UserError("Prefect has no schedules; run: turbo-vaed schedule sync") from None
            assert isinstance(run, FlowRun)
            return run


def _patience() -> AbstractContextManager[Any]:
    """All schedules are one request, which takes a server long where it is busy."""
    return temporary_settings({PREFECT_API_REQUEST_TIMEOUT: _REQUEST_SECONDS})


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the team's Prefect server.

    Raises:
        UserError: none is named.
        Unreachable: it does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise UserError(
            "schedules need a Prefect server that stays; set PREFECT_API_URL, for instance to "
            "http://127.0.0.1:4200/api of `prefect server start`"
        )
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise Unreachable(
            f"the Prefect server at {url} (PREFECT_API_URL) does not answer: "
            f"{error or type(error).__name__}"
        ) from error


def _schedules(settings: Settings, paused: Collection[str | None]) -> dict[str, Schedule]:
    """Of the customers that have one; all of them are checked before anything is changed."""
    files = read(settings.root)  # once: with 300 customers that takes a second
    found, wrong = {}, []
    for customer in map(str, files.customers):
        try:
            params = resolve(files, customer).params().schedule
            if params is not None:
                found[customer] = Cron(
                    cron_of(customer, params),
                    timezone=params.timezone,
                    active=customer not in paused,
                    parameters={"customer": customer},
                    slug=customer,
                )
        except TurboVaedError as error:
            wrong.append(str(error))
        except ValueError as error:  # Prefect's, of an expression
            wrong.append(f"customers.{customer}.schedule.cron: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def _deployment(client: SyncPrefectClient, name: str = FULL_NAME) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _runs(
    client: SyncPrefectClient, deployment: DeploymentResponse, types: list[str]
) -> Iterator[FlowRun]:
    """The deployment's runs of these types, the newest first."""
    wanted = FlowRunFilter.model_validate(
        {"deployment_id": {"any_": [str(deployment.id)]}, "state": {"type": {"any_": types}}}
    )
    for offset in itertools.count(0, _PAGE):
        found = client.read_flow_runs(
            flow_run_filter=wanted,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_PAGE,
            offset=offset,
        )
        yield from found
        if len(found) < _PAGE:
            return


def _late(client: SyncPrefectClient, deployment: DeploymentResponse) -> list[FlowRun]:
    """The scheduled runs that no worker has begun in time."""
    found = list(_runs(client, deployment, ["SCHEDULED"]))
    return [run for run in found if run.auto_scheduled and run.state_name == "Late"]


def _skip(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """End a late run, which an alarm waits for: one that were only deleted would never end."""
    ended: State[Any] = Completed(name="Skipped", message=f"it had not begun when {why}")
    client.set_flow_run_state(run.id, ended, force=True)


def _last_states(
    client: SyncPrefectClient, deployment: DeploymentResponse, customers: set[str]
) -> dict[str, str]:
    """The name of the state of the last run of each customer that had one lately."""
    found: dict[str, str] = {}
    begun = ["RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "CANCELLING", "PENDING"]
    for run in itertools.islice(_runs(client, deployment, begun), _MOST_RUNS):
        found.setdefault(str(run.parameters.get("customer")), str(run.state_name))
        if customers <= found.keys():
            break
    return found


def _rows(client: SyncPrefectClient, deployment: DeploymentResponse | None) -> list[Row]:
    if deployment is None:
        return []
    stored = sorted(deployment.schedules, key=lambda one: str(one.slug))
    last = _last_states(client, deployment, {str(one.slug) for one in stored})
    return [_row(one, last.get(str(one.slug), "")) for one in stored]


def _row(schedule: DeploymentSchedule, last: str) -> Row:
    cron: Any = schedule.schedule
    timezone = cron.timezone or "UTC"
    next_at = next_due(cron.cron, timezone, datetime.now(UTC)) if schedule.active else None
    return Row(
        customer=str(schedule.slug),
        cron=cron.cron,
        timezone=timezone,
        is_paused=not schedule.active,
        next_at=next_at,
        last=last,
    )
