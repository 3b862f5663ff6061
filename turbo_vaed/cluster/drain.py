"""Drains the Ray node of an EC2 machine before the machine is taken away.

At EC2's notice it is drained at once. At its recommendation to leave, the autoscaler is asked for
another machine, and this one works until that has joined, or until the notice comes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

import requests

from turbo_vaed.cluster.metadata import Metadata, Notice
from turbo_vaed.errors import Fault, Unreachable
from turbo_vaed.settings import metadata_endpoint

_RAY_SECONDS = 30.0
_COMMAND_SECONDS = 5.0
_FIND_NODE = """
import sys, ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
wanted = sys.argv[1] or ray.get_runtime_context().get_node_id()
if wanted not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
    sys.exit(f"no node {wanted} is alive")
print(wanted)
"""
_REPLACE_NODE = """
import sys, time, ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
ray.init("auto", log_to_driver=False, logging_level="ERROR")
leaving = sys.argv[1] or ray.get_runtime_context().get_node_id()
known = {node["NodeID"] for node in ray.nodes()}
has = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}.get(leaving)
if has is None:
    sys.exit(f"no node {leaving} is alive")
kind = "GPU" if has.get("GPU") else "CPU"
bundle, coordinator = {kind: has.get(kind, 0)}, get_or_create_autoscaling_coordinator()
requester = f"replacement of {leaving}"
while True:  # asked again and again, so that the request ends with whoever asks
    coordinator.request_resources.remote(
        requester_id=requester, resources=[bundle], expire_after_s=60
    )
    if any(
        node["Alive"] and node["NodeID"] not in known and node["Resources"].get(kind, 0) > 0
        for node in ray.nodes()
    ):
        break
    time.sleep(5)
ray.get(coordinator.cancel_request.remote(requester))
"""


class Replacement:
    """Another machine that the autoscaler is asked for, in place of a node. A child process asks:
    through Ray Train's own coordinator, as each request of its kind replaces the one before."""

    def __init__(self, node_id: str | None = None) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _REPLACE_NODE, node_id or ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_joined(self) -> bool:
        """Whether a machine has joined since.

        Raises:
            Unreachable: nobody asks for it any more.
        """
        code = self._child.poll()
        if code:
            assert self._child.stderr is not None
            lines = self._child.stderr.read().strip().splitlines() or [f"exit code {code}"]
            raise Unreachable(f"no replacement is asked for; Ray says: {lines[-1]}")
        return code == 0

    def cancel(self) -> None:
        """Ask no longer; the request lapses within a minute."""
        self._child.kill()
        self._child.communicate()


class Watcher:
    """Looks at the metadata, and drains the node once per kind of notice.

    Args:
        metadata: of this machine.
        drain: drains the node for a notice; raises Fault where it could not.
        replace: asks for another machine; a rebalance recommendation drains when it has joined.
        say: called with a sentence for every notice, for its outcome, and for each new problem.
        rebalance_seconds: what a rebalance recommendation leaves to finish, once it drains.
    """

    def __init__(
        self,
        metadata: Metadata,
        drain: Callable[[Notice], None],
        replace: Callable[[], Replacement],
        say: Callable[[str], None],
        *,
        rebalance_seconds: float,
    ) -> None:
        self._metadata, self._drain, self._say = metadata, drain, say
        self._replace = replace
        self._replacement: Replacement | None = None
        self._rebalance_seconds = rebalance_seconds
        self._drained: set[Notice] = set()
        self._trouble: dict[str, str] = {}

    def poll(self) -> None:
        """Look once at the metadata; any error of it is only reported."""
        self._look("interruption", self._metadata.interruption)
        if not self._drained:  # a node is left once; only a deadline that was not known is news
            self._look("rebalance", lambda: self._metadata.rebalance(self._rebalance_seconds))

    def _look(self, kind: str, read: Callable[[], Notice | None]) -> None:
        try:
            notice = read()
        except (requests.RequestException, ValueError) as error:
            self._say_once(kind, f"instance metadata: {error}")
            return
        if notice is None or notice in self._drained:
            self._trouble.pop(kind, None)
            return
        try:
            if notice.kind == "rebalance" and not self._is_replaced(notice):
                return
            self._drain(notice)
        except Fault as error:
            self._say_once(kind, f"{notice.text}, and its node is NOT drained: {error}")
            return
        self._end_request()
        self._drained.add(notice)
        self._trouble.pop(kind, None)
        left = max(0.0, (notice.deadline - datetime.now(UTC)).total_seconds())
        self._say(f"{notice.text}: its Ray node is drained, {left:.0f} s are left")

    def _is_replaced(self, notice: Notice) -> bool:
        if self._replacement is None:
            self._replacement = self._replace()
            self._say(f"{notice.text}: another one is asked for, and this one works until it joins")
        try:
            return self._replacement.has_joined()
        except Fault:
            self._end_request()  # at the next look it is asked for anew
            raise

    def _end_request(self) -> None:
        if self._replacement is not None:
            self._replacement.cancel()
            self._replacement = None

    def _say_once(self, kind: str, text: str) -> None:
        if self._trouble.get(kind) != text:
            self._trouble[kind] = text
            self._say(text)


def watch(
    *, poll_seconds: float = 5.0, rebalance_seconds: float = 600.0, node_id: str | None = None
) -> None:
    """Watch for ever; this process needs no Ray of its own, and outlives that of the node.

    Args:
        poll_seconds: between two looks; EC2 asks for 5.
        rebalance_seconds: what a rebalance recommendation leaves to finish.
        node_id: Ray's hex id of the node to drain; else the one on this machine.

    Raises:
        Unreachable: there is no metadata service.
        UserError: its endpoint is no URL.
    """
    say: Callable[[str], None] = partial(print, flush=True)
    metadata = Metadata(metadata_endpoint())
    metadata.check()
    try:
        say(f"watching for notices to Ray node {find_node(node_id)}")
    except Unreachable as error:
        say(f"watching for notices; {error}")
    watcher = Watcher(
        metadata,
        partial(drain, node_id=node_id),
        partial(Replacement, node_id),
        say,
        rebalance_seconds=rebalance_seconds,
    )
    while True:
        watcher.poll()
        time.sleep(poll_seconds)


def drain(notice: Notice, *, node_id: str | None = None) -> None:
    """Have Ray drain a node, by default the one on this machine: its workers checkpoint and go.

    Raises:
        Unreachable: Ray does not answer, or refuses.
    """
    # The command, not Ray's client in this process: both are private, and the client takes the
    # process down with it where the cluster goes away. Its few seconds of a hundred and twenty are
    # taken off, since it counts the rest from when it has started.
    node = find_node(node_id)
    left = (notice.deadline - datetime.now(UTC)).total_seconds() - _COMMAND_SECONDS
    options = {
        "node-id": node,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": notice.text,
        "deadline-remaining-seconds": str(max(0, int(left))),
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    _ray(["-m", "ray.scripts.scripts", "drain-node", *given])


def find_node(node_id: str | None = None) -> str:
    """Ray's hex id of that node, or of the one on this machine, if it is alive.

    Asked anew at every notice: a raylet that was started again has another id, and Ray takes the
    drain of a node that it does not know for done.

    Raises:
        Unreachable: no Ray answers here, or it knows no such node.
    """
    return _ray(["-c", _FIND_NODE, node_id or ""]).splitlines()[-1]


def _ray(arguments: Sequence[str]) -> str:
    """Run Python with these arguments; returns what it printed."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=_RAY_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"Ray did not answer within {_RAY_SECONDS:g} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip() or error.stdout.strip() or "nothing").splitlines()[-1]
        raise Unreachable(
            f"Ray says: {last_line}; does a node run on this machine (ray status)? Else set "
            "RAY_ADDRESS or give --node-id"
        ) from error
    return done.stdout
