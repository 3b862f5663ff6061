"""The supervisor of a team's servers: started once, asked over its socket, ended with all that it
started."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from scripts.team.layout import CONFIG, Layout
from turbo_vaed.errors import Fault

_START_SECONDS = 30.0
_STOP_SECONDS = 150.0
"""A run that goes on saves a checkpoint and books what it cost."""


class Supervisor:
    """supervisord of one stack."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @property
    def _rpc(self) -> Any:
        """A fresh connection: one that failed cannot be used again."""
        socket = self._layout.sockets / "supervisor.sock"
        transport = SupervisorTransport(None, None, f"unix://{socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)

    def is_up(self) -> bool:
        try:
            return bool(self._rpc.supervisor.getState()["statename"] == "RUNNING")
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False

    def start(self) -> None:
        """Start supervisord where it does not run; it goes on when this process ends."""
        if self.is_up():
            return
        program = Path(sys.executable).with_name("supervisord")
        subprocess.run(
            [program, "-c", CONFIG],
            env=self._layout.environment(),
            check=True,
            start_new_session=True,  # Ctrl-C here ends no server
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_up():
            if time.monotonic() > deadline:
                raise Fault(f"supervisord does not answer; see {self._layout.home}/logs")
            time.sleep(0.2)

    def start_program(self, name: str) -> None:
        """Start a program that does not run; who needs it waits until it answers."""
        if self.state(name) not in ("STARTING", "RUNNING", "BACKOFF"):
            self._rpc.supervisor.startProcess(name, False)

    def state(self, name: str) -> str:
        return str(self._rpc.supervisor.getProcessInfo(name)["statename"])

    def programs(self) -> list[dict[str, Any]]:
        """Each program with its state and process."""
        found: list[dict[str, Any]] = self._rpc.supervisor.getAllProcessInfo()
        return found

    def stop(self, order: list[str], before: Mapping[str, Callable[[], None]]) -> list[int]:
        """Stop the programs in turn, then supervisord; returns the processes that had to be killed.

        Args:
            before: what is done right before a program is stopped, if it runs.

        What left its parent, such as a run that the worker had started, is below it no more and is
        found by having been so before.
        """
        above = psutil.Process(int(self._rpc.supervisor.getPID()))
        known: dict[int, psutil.Process] = {}
        for name in order:
            known |= {one.pid: one for one in above.children(recursive=True)}
            if name == "worker":  # it kills its runs, which are to end in order
                _end([one for one in known.values() if _is_run(one)])
            if name in before and self.state(name) == "RUNNING":
                before[name]()
            with contextlib.suppress(xmlrpc.client.Fault):  # it does not run
                self._rpc.supervisor.stopProcess(name)
        known |= {one.pid: one for one in above.children(recursive=True)} | {above.pid: above}
        self._rpc.supervisor.shutdown()
        psutil.wait_procs([above], timeout=_START_SECONDS)
        return _end([*known.values()])


def _is_run(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("prefect.engine" in part for part in process.cmdline())
    return False


def _end(processes: list[psutil.Process]) -> list[int]:
    """Ask processes that still run to end, then kill them; returns those that were killed."""
    left = [one for one in processes if one.is_running()]
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(left, timeout=_STOP_SECONDS)
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(left, timeout=10)
    return [one.pid for one in left]
