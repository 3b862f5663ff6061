"""The event by which Prefect learns that a run has spent the warning share of its budget."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL

from turbo_vaed.costs import Ledger, format_usd, spending_limit
from turbo_vaed.planning.pricing import limits_of
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

EVENT = "turbo-vaed.budget.warned"
LOOK_SECONDS = 60.0
END_SECONDS = 5.0
"""How long a run that ends waits for a look at a ledger that does not answer."""
log = logging.getLogger(__name__)


@contextmanager
def watched(workspace: Workspace, settings: Settings, run: str) -> Iterator[None]:
    """While the block runs and at its end, look at what the run has spent; once it is
    `budget.warn_share` of what it may spend, emit `EVENT`. Only for the run of a deployment: a
    person who starts one by hand reads its warning in the output.

    Args:
        run: its id in the ledger.
    """
    deployed, prefect_run = str(deployment.id or ""), str(flow_run.id or "")
    if not (PREFECT_API_URL.value() and deployed):
        yield
        return
    is_warned, over = threading.Event(), threading.Event()

    def look() -> None:
        try:
            if message := warning(workspace, settings, run):
                emit(prefect_run, deployed, message)
                is_warned.set()
        except Exception as error:  # a run does not fail for an alarm
            log.warning("the spend of %s is not watched: %s", run, error)

    def watch() -> None:
        while not over.wait(LOOK_SECONDS) and not is_warned.is_set():
            look()

    thread = threading.Thread(target=watch, name="budget alarm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_SECONDS)
        if not (is_warned.is_set() or thread.is_alive()):
            look()


def warning(workspace: Workspace, settings: Settings, run: str) -> str:
    """What a run has spent, if that is the warning share of what it may; else empty.

    Raises:
        Unreachable: the ledger does not answer.
    """
    customer, limits = workspace.customer, limits_of(workspace.params)
    share = Decimal(str(workspace.params.budget.warn_share))
    with Ledger.open(settings.ledger_url) as ledger:
        spent_usd = ledger.total(run=run)
        limit = spending_limit(ledger, limits, run=run, customer=customer, at=datetime.now(UTC))
    if spent_usd < limit.usd * share:
        return ""
    return f"{format_usd(spent_usd)} of {format_usd(limit.usd)} spent, by {limit.by}"


def emit(prefect_run: str, deployed: str, message: str) -> None:
    """Send the event, of a flow run of a deployment."""
    emit_event(
        EVENT,
        resource={"prefect.resource.id": f"prefect.flow-run.{prefect_run}"},
        related=[
            {
                "prefect.resource.id": f"prefect.deployment.{deployed}",
                "prefect.resource.role": "deployment",
            }
        ],
        payload={"message": message},
    )
