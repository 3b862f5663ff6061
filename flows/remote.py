"""A run on a team's controller: submitted to its Prefect worker, and followed from wherever.

Nothing of the run depends on who follows: the network may go, the laptop may be closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

POLL_SECONDS = 5.0
_LOGS = 200
"""Lines that Prefect gives at once, at most."""
_EXIT_CODES = {"GateFailed": 1, "Inconclusive": 1, "Refused": 1, "Stopped": 130, "Cancelled": 130}
"""By the name of a state that is none of a completed flow; all others are faults."""


def require_shared_places(settings: Settings) -> None:
    """Check that a run elsewhere can be seen and stopped from here.

    Raises:
        UserError: the ledger or MLflow is this checkout's own.
    """
    lost = []
    if settings.ledger_url.startswith("sqlite"):
        lost.append("TURBO_VAED_LEDGER_URL (the team's PostgreSQL)")
    if not settings.mlflow_tracking_uri.startswith(("http://", "https://")):
        lost.append("MLFLOW_TRACKING_URI (the team's MLflow server)")
    if lost:
        raise UserError(
            "the run would not be seen from here; set to what the controller uses: "
            + "; ".join(lost)
        )


def follow(
    client: SyncPrefectClient,
    run: UUID,
    say: Callable[[str], None],
    *,
    poll_seconds: float = POLL_SECONDS,
) -> State:
    """Report a flow's states and log until it ends; returns its last state. A server that does not
    answer is asked again, for as long as it takes.

    Raises:
        UserError: it has no such run, or does not show it to us.
    """
    seen, shown = "", datetime.fromtimestamp(0, UTC)
    known: set[UUID] = set()
    is_away = False
    while True:
        try:
            found = client.read_flow_run(run)
            logs = client.read_logs(
                LogFilter.model_validate(
                    {"flow_run_id": {"any_": [str(run)]}, "timestamp": {"after_": shown}}
                ),
                sort=LogSort.TIMESTAMP_ASC,
                limit=_LOGS,
            )
        except ObjectNotFound:
            raise UserError(f"Prefect has no flow run {run}") from None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                raise UserError(
                    f"Prefect at {PREFECT_API_URL.value()} does not show flow run {run}: {error}; "
                    "check PREFECT_API_AUTH_STRING. The run goes on"
                ) from None
            if not is_away:
                say(f"Prefect does not answer ({error or type(error).__name__}); the run goes on")
            is_away = True
            time.sleep(poll_seconds)
            continue
        if is_away:
            say("Prefect answers again")
        is_away = False
        for log in logs:
            if log.id not in known:
                say(log.message)
                known.add(log.id)
                shown = log.timestamp
        state = found.state
        assert state is not None, "a run in Prefect has a state"
        if state.name != seen:
            seen = str(state.name)
            say(f"{found.name}: {seen}")
        if state.is_final() and len(logs) < _LOGS:
            return state
        time.sleep(poll_seconds if len(logs) < _LOGS else 0)


def exit_code(state: State) -> int:
    """As `turbo-vaed poc` would have ended."""
    if state.is_completed():
        return 0
    return _EXIT_CODES.get(str(state.name), 3)
