"""The state of a flow in Prefect, whose name says what a run came to."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows.effects import Outcome
from turbo_vaed.errors import Fault, Refused, Stopped


class Ended(Exception):
    """What a run came to, as a state has it that is not of type completed."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.sentence)
        self.outcome = outcome


def state_of(outcome: Outcome) -> State[Outcome]:
    """The state of a flow that did its work."""
    if outcome.is_unchanged or outcome.result == "passes":
        name = "Unchanged" if outcome.is_unchanged else "Passed"
        return Completed(name=name, message=outcome.sentence, data=Ended(outcome))
    name = "GateFailed" if outcome.result == "fails" else "Inconclusive"
    return Failed(name=name, message=outcome.sentence, data=Ended(outcome))


def skipped(customer: str, why: str) -> State[Outcome]:
    """The state of a scheduled flow that did nothing."""
    return Completed(name="Skipped", message=f"{customer} was skipped: {why}")


def state_of_failure(error: Exception) -> State[Outcome]:
    """The state of a flow that ended before its gate."""
    message = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    if isinstance(error, Stopped):
        return Cancelled(name="Stopped", message=message, data=error)
    name = "Refused" if isinstance(error, Refused) else "Fault"
    return Failed(name=name, message=message, data=error)


def outcome_of(state: State[Any]) -> Outcome:
    """What the flow came to.

    Raises:
        TurboVaedError: what ended it before its gate.
    """
    found: object = state.result(raise_on_failure=False)
    if isinstance(found, Ended):
        return found.outcome
    if isinstance(found, BaseException):
        raise found
    raise Fault(f"the flow ended as {state.name}: {state.message}")
