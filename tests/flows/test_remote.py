"""A run that goes on elsewhere, seen through a Prefect that answers now and then."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, Log, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Running, Scheduled

from flows import remote
from tests import configs
from turbo_vaed.errors import UserError
from turbo_vaed.settings import Settings

RUN = uuid4()
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


class Server:
    """Has a run whose states come one by one; None is a time in which it does not answer."""

    def __init__(self, *states: State | None, lines: int = 0) -> None:
        self.states = list(states)
        self.logs = [
            Log(name="run", level=20, message=str(i), timestamp=NOON + timedelta(seconds=i // 3),
                flow_run_id=RUN, id=uuid4())
            for i in range(lines)
        ]  # fmt: skip

    def read_flow_run(self, run: UUID) -> FlowRun:
        assert run == RUN
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state is None:
            raise httpx.ConnectError("refused")
        return FlowRun(id=RUN, flow_id=uuid4(), name="brisk-otter", state=state)

    def read_logs(self, log_filter: Any, *, sort: object, limit: int) -> list[Log]:
        after = log_filter.timestamp.after_  # or at that time, as Prefect's server has it
        return [log for log in self.logs if log.timestamp >= after][:limit]


def followed(server: Server) -> tuple[State, list[str]]:
    said: list[str] = []
    state = remote.follow(server, RUN, said.append, poll_seconds=0)  # type: ignore[arg-type]
    return state, said


def test_a_run_is_followed_over_a_lost_network() -> None:
    server = Server(Scheduled(), Running(), None, None, Running(), Completed(name="Passed"))
    state, said = followed(server)
    assert state.name == "Passed" and remote.exit_code(state) == 0
    assert [line.split(": ")[1] for line in said if line.startswith("brisk-otter")] == [
        "Scheduled", "Running", "Passed",
    ]  # fmt: skip
    assert len([line for line in said if "refused" in line]) == 1, "said once"


def test_every_line_of_the_log_is_reported_once_and_in_order() -> None:
    _, said = followed(Server(Completed(), lines=3 * remote._LOGS + 7))
    assert [int(line) for line in said if line.isdigit()] == list(range(3 * remote._LOGS + 7))


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (Completed(name="Unchanged"), 0), (Completed(name="Skipped"), 0),
        (Failed(name="GateFailed"), 1), (Failed(name="Refused"), 1), (Failed(name="Fault"), 3),
        (Cancelled(name="Stopped"), 130), (State(type=StateType.CRASHED, name="Crashed"), 3),
    ],
)  # fmt: skip
def test_exit_codes_are_those_of_a_run_here(state: State, code: int) -> None:
    assert remote.exit_code(state) == code


def test_a_ledger_of_this_checkout_does_not_show_a_run_elsewhere(tmp_path: Any) -> None:
    configs.copy_to(tmp_path)
    embedded = Settings.from_environment(tmp_path)
    with pytest.raises(UserError, match=r"TURBO_VAED_LEDGER_URL.*MLFLOW_TRACKING_URI"):
        remote.require_shared_places(
            dataclasses.replace(
                embedded, ledger_url="sqlite:///x.db", mlflow_tracking_uri="sqlite:///y.db"
            )
        )


@pytest.mark.parametrize("refusal", [401, 403, 404])
def test_a_run_that_prefect_does_not_show_is_no_absence(refusal: int) -> None:
    class Refusing(Server):
        def read_flow_run(self, run: UUID) -> FlowRun:
            request = httpx.Request("GET", "http://prefect/api")
            answer = httpx.Response(refusal, request=request)
            error = httpx.HTTPStatusError("refused", request=request, response=answer)
            raise ObjectNotFound(error) if refusal == 404 else error

    with pytest.raises(UserError, match=str(RUN)):
        followed(Refusing(Running()))
