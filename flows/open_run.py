"""The run that works for a customer: it holds the customer in the ledger's database, sends
heartbeats there until it ends, and stops where somebody asks for that."""

from __future__ import annotations

import _thread
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as prefect_run
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed

from turbo_vaed.costs import Ledger, release_reservation
from turbo_vaed.costs.open_runs import OpenRun, OpenRuns
from turbo_vaed.errors import TurboVaedError
from turbo_vaed.registry import client
from turbo_vaed.report.context import Registration
from turbo_vaed.runtime import logs
from turbo_vaed.runtime.processes import Process
from turbo_vaed.settings import Settings

BEAT_SECONDS = 10.0
"""Between two heartbeats; also how late a run learns that it is to stop."""
INTERRUPT_AGAIN_SECONDS = 120.0
"""After an interrupt that ended nothing; a stage that saves and charges takes less."""
JOIN_SECONDS = 30.0
"""How long a run that is over waits for the last heartbeat."""
log = logging.getLogger(__name__)


@dataclass
class Reached:
    """How far a run has come: what a report of its failure is about."""

    run: str = ""
    """Its id, once known."""
    step: str = ""
    """A stage, `register` or `promote`."""
    is_begun: bool = False
    """Whether it was admitted: its estimate fits the budget."""
    registered: Registration | None = None


class Heartbeat:
    """A thread that shows that a run lives. Where the run is to stop, it interrupts the main
    thread, as SIGTERM does, and says why."""

    def __init__(
        self,
        open_runs: OpenRuns,
        mine: OpenRun,
        reached: Reached,
        is_cancelled: Callable[[], bool],
        interrupt: Callable[[], None] = lambda: _thread.interrupt_main(signal.SIGTERM),
    ) -> None:
        """
        Args:
            reached: what the run does, as it goes on.
            is_cancelled: whether somebody has cancelled the flow in Prefect.
            interrupt: ends what the main thread does.
        """
        self.open_runs, self._mine, self._reached = open_runs, mine, reached
        self._is_cancelled, self._interrupt = is_cancelled, interrupt
        self.stopped_by = ""
        """Who or what stopped the run; empty where nothing has, or a signal."""
        self.is_lost = False
        """Whether another run has taken the customer: nothing may be written any more."""
        self._interrupted_at = -math.inf
        self._lock, self._is_ending = threading.Lock(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self.poll()
            except TurboVaedError as error:  # whoever cannot reach it cannot take it either
                log.warning("others do not see that this run lives: %s", error)
            except Exception:
                log.warning("others do not see that this run lives", exc_info=True)

    def poll(self) -> None:
        """Show that the run lives, and learn whether it is to stop.

        Raises:
            Unreachable: the database does not answer.
        """
        found = self.open_runs.beat(self._mine, run=self._reached.run, step=self._reached.step)
        if found is None:
            self.is_lost = True
            self._stop("another run has taken its place, since this one was cut off for minutes")
        elif found.abort_by:
            self._stop(f"by {found.abort_by}, with turbo-vaed runs abort")
        elif self._is_cancelled():
            self._stop("cancelled in Prefect")

    def save_state(self, files: Mapping[str, str]) -> str | None:
        """As `OpenRuns.save_state`; None where the run is to stop, since it has lost the customer.

        Raises:
            Unreachable: the database does not answer.
        """
        revision = self.open_runs.save_state(self._mine, files)
        if revision is None:
            self.poll()
        return revision

    def _stop(self, by: str) -> None:
        with self._lock:
            is_due = time.monotonic() - self._interrupted_at > INTERRUPT_AGAIN_SECONDS
            if self._is_ending or not is_due:
                return
            self.stopped_by, self._interrupted_at = by, time.monotonic()
            self._interrupt()

    def end_interrupts(self) -> None:
        """From here on the run ends by itself, and is not to be interrupted."""
        with self._lock:
            self._is_ending = True

    @property
    def token(self) -> int:
        """With which the run holds its customer."""
        return self._mine.token

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end_interrupts()
            self._over.set()
            self._thread.join(JOIN_SECONDS)
        finally:
            try:
                self.open_runs.end(self._mine)
            except TurboVaedError as error:  # others find that this process has ended
                log.warning("the end of this run is not recorded: %s", error)


@contextmanager
def acquired(settings: Settings, customer: str, reached: Reached) -> Iterator[Heartbeat]:
    """Take a customer for this flow until the block ends; what a run before it left, which died, is
    settled first.

    Raises:
        Busy: a run of the customer is going on, here or elsewhere.
        Unreachable: the ledger does not answer.
    """
    flow_run = str(prefect_run.id or "")
    with OpenRuns.open(settings.ledger_url) as open_runs:
        mine, dead = open_runs.acquire(customer, Process.this(), flow_run=flow_run)
        with Heartbeat(open_runs, mine, reached, partial(is_cancelled, flow_run)) as heartbeat:
            if dead is not None:
                settle(settings, dead)
            yield heartbeat


def tag(reached: Reached, customer: str) -> None:
    """Let the flow's run in Prefect, and its logs, be found by the customer and the run's id."""
    logs.of_run(customer, reached.run)
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(str(prefect_run.id)))
        client.update_flow_run(flow_run.id, tags={*flow_run.tags, customer, reached.run})


def is_cancelled(flow_run: str) -> bool:
    """Whether somebody has cancelled the flow in Prefect; false where Prefect does not answer
    soon, and outside of a flow."""
    if not flow_run:  # a client would start a server of its own
        return False
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": 5.0}) as client,
        ):
            state = client.read_flow_run(UUID(flow_run)).state
    except Exception as error:  # whatever Prefect says: the run goes on
        log.debug("Prefect does not say whether %s is cancelled: %s", flow_run, error)
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def settle_dead(settings: Settings) -> list[OpenRun]:
    """Settle every run that died, unless its customer's next one does at this moment; returns them.

    Raises:
        Unreachable: the ledger does not answer.
    """
    with OpenRuns.open(settings.ledger_url) as open_runs:
        found = [one for one in open_runs.all() if one.state == "dead" and open_runs.end(one)]
    for dead in found:
        settle(settings, dead)
    return found


def settle(settings: Settings, dead: OpenRun) -> None:
    """End what a run left that died: its reservation, its open runs in MLflow, its run in Prefect.
    Its charges are booked by whoever opens the ledger next on its machine. Only for whoever has
    acquired its customer, or has ended its row.

    The reservation of a run that died on another machine stays until it expires, for that machine
    may still cost something.
    """
    if dead.run:
        try:
            if dead.holder.is_local:
                with Ledger.open(settings.ledger_url) as ledger:
                    release_reservation(ledger, dead.run)
            client.end_runs(settings.mlflow_tracking_uri, dead.customer, dead.run)
        except Exception as error:  # the next run must not fail for it
            log.warning("not all of what %s left is settled: %s", dead.run, error)
    if dead.flow_run and (PREFECT_API_URL.value() or prefect_run.id):
        _end_flow_run(dead)


def _end_flow_run(dead: OpenRun) -> None:
    ended: State[Any] = Crashed(message=f"{dead.holder} died at {dead.step or 'its start'}")
    try:
        with get_client(sync_client=True) as prefect:
            last = prefect.read_flow_run(UUID(dead.flow_run)).state
            if last is None or not last.is_final():
                prefect.set_flow_run_state(UUID(dead.flow_run), ended, force=True)
    except Exception as error:
        log.warning("Prefect keeps the state of the flow run %s: %s", dead.flow_run, error)
