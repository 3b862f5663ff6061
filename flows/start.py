"""Start a run from a terminal: where it has something to do, with Prefect's temporary server if no
other is named, and with each failure printed once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from functools import partial
from types import SimpleNamespace

from prefect.settings import PREFECT_API_URL

from flows import admission, customer_state, effects, publish, states
from flows.effects import Outcome
from flows.poc import poc_flow
from flows.to_do import to_do_now
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.runtime.interrupts import shielded
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_OF_A_FAILURE = (
    "Encountered exception during execution",
    "Task run failed with",
    *(
        f"Finished in state {name}("
        for name in ("Failed", "GateFailed", "Inconclusive", "Refused", "Fault", "Stopped")
    ),
)
"""How Prefect's log begins what it has of a failure."""


def start(settings: Settings, customer: str) -> Outcome:
    """Run the flow for one customer and return what it came to.

    Raises:
        TurboVaedError: as the stage that failed; a report of the stages that ran is written.
    """
    workspace = admission.preflight(settings, customer)  # reports mistakes before a server starts
    if not PREFECT_API_URL.value() and is_unchanged(workspace, settings):
        found = effects.unchanged(workspace)  # a temporary server takes half of such a run's time
        publish.after_run(customer, states.state_of(found))
        return found
    print_failures_once()
    if not PREFECT_API_URL.value():
        start_server()
    return states.outcome_of(poc_flow(customer, return_state=True))


def is_unchanged(workspace: Workspace, settings: Settings) -> bool:
    """Whether there is nothing to do, and other checkouts know.

    Raises: as `to_do_now`.
    """
    if to_do_now(workspace, settings) is not None:
        return False
    with OpenRuns.open(settings.ledger_url) as open_runs:
        return customer_state.is_saved(workspace, open_runs)


def start_server() -> int:
    """Start Prefect's temporary server, as Prefect itself would, but in a process group of its own:
    what ends this one (Ctrl-C, a closed terminal, `timeout`, systemd's stop) leaves it running, for
    it has the end of the flow to record. It ends with this process, also where that is killed.
    Returns its process id.
    """
    from prefect.server.api import server as prefect_server

    in_own_group = partial(subprocess.Popen, process_group=0)
    prefect_server.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": in_own_group})  # type: ignore[attr-defined,assignment]
    server = prefect_server.SubprocessASGIServer()
    with shielded(signal.SIGINT, signal.SIGHUP):
        server.start()
        assert server.server_process is not None
        pid = server.server_process.pid
        reader, _open_until_we_end = os.pipe()
        guard = f"read _; kill {pid} 2>/dev/null"
        subprocess.Popen(["sh", "-c", guard], stdin=reader, start_new_session=True)
        os.close(reader)
    return pid


def print_failures_once() -> None:
    """Keep Prefect's accounts of a failure, up to three, off the console, where the command prints
    the error. A Prefect server gets them."""
    for handler in logging.getLogger().handlers:
        if is_no_repeated_failure not in handler.filters:
            handler.addFilter(is_no_repeated_failure)


def is_no_repeated_failure(record: logging.LogRecord) -> bool:
    """False for Prefect's own record of a failure; true where it announces another try."""
    text = record.getMessage()
    is_account = record.name.startswith("prefect.") and text.startswith(_OF_A_FAILURE)
    return not is_account or " - Retry " in text
