"""Drains the Ray node of an EC2 machine before the machine is taken away.

Read of the instance metadata (IMDSv2, a token first), every few seconds:

- `spot/instance-action`: EC2 takes the machine at a given time, two minutes ahead
- `events/recommendations/rebalance`: EC2 expects to do so soon, and gives no time

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import requests

from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET, REGION, ZONE
from turbo_vaed.errors import Fault, Unreachable
from turbo_vaed.settings import metadata_endpoint

_TOKEN_LIFE_SECONDS = 21600
_ANSWER_SECONDS = 2.0
_FIRST_TRIES = 3
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


@dataclass(frozen=True, kw_only=True)
class Notice:
    """EC2's notice that it takes this machine, or may do so soon."""

    kind: Literal["interruption", "rebalance"]
    text: str
    deadline: datetime
    """Until when the machine is to be given up."""


class Metadata:
    """The instance metadata service, version 2.

    Not botocore's `IMDSFetcher`: its requests are private methods, it goes on with version 1 where
    it gets no token, and it takes a token that has run out for an answer.
    """

    def __init__(self, endpoint: str) -> None:
        self._base = f"{endpoint.rstrip('/')}/latest"
        self._session = requests.Session()
        self._session.trust_env = False  # link-local: a proxy would answer for another machine
        self._token = ""

    def check(self) -> None:
        """Raises Unreachable where nothing answers, or no token is given to this process."""
        found = ""
        for _ in range(_FIRST_TRIES):
            try:
                status = self._ask_token().status_code
            except requests.RequestException as error:
                found = f"no instance metadata at {self._base} ({type(error).__name__})"
                continue
            if status < 400 or status >= 500:  # up; polling reports its server errors
                return
            found = f"{self._base}/api/token answers {status}: the metadata may be switched off"
        raise Unreachable(
            f"{found}; is this an EC2 machine? In a container the metadata's hop limit must be 2 "
            "or more; elsewhere set AWS_EC2_METADATA_SERVICE_ENDPOINT"
        )

    def interruption(self) -> Notice | None:
        """The notice that EC2 takes this machine, if there is one.

        Raises:
            requests.RequestException: no answer, or an error.
            ValueError: the answer is no notice.
        """
        text = self._read("meta-data/spot/instance-action")
        if text is None:
            return None
        try:
            found = json.loads(text)
            action, deadline = str(found["action"]), _moment(found["time"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"spot/instance-action is no notice: {text[:200]!r}") from error
        warning = f"EC2 will {action} this machine at {deadline:%H:%M:%S} UTC"
        return Notice(kind="interruption", text=warning, deadline=deadline)

    def rebalance(self, seconds: float) -> Notice | None:
        """The recommendation to leave this machine, if there is one: within `seconds` from now.

        Raises:
            requests.RequestException: no answer, or an error.
            ValueError: the answer is no recommendation.
        """
        text = self._read("meta-data/events/recommendations/rebalance")
        if text is None:
            return None
        try:
            noticed = _moment(json.loads(text)["noticeTime"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"recommendations/rebalance is no notice: {text[:200]!r}") from error
        advice = f"EC2 has recommended leaving this machine since {noticed:%H:%M:%S} UTC"
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        return Notice(kind="rebalance", text=advice, deadline=deadline)

    def machine(self) -> dict[str, str]:
        """The labels by which this machine's price is found, from the metadata.

        Raises:
            Unreachable: it does not answer, or does not know.
        """
        asked = {
            INSTANCE_TYPE: "instance-type",
            MARKET: "instance-life-cycle",  # spot or on-demand
            REGION: "placement/region",
            ZONE: "placement/availability-zone",
        }
        try:
            found = {label: self._read(f"meta-data/{path}") for label, path in asked.items()}
        except requests.RequestException as error:
            raise Unreachable(f"instance metadata: {error}") from error
        missing = [asked[label] for label, value in found.items() if not value]
        if missing:
            raise Unreachable(f"the instance metadata at {self._base} lacks {', '.join(missing)}")
        return {label: value.strip() for label, value in found.items() if value}

    def _read(self, path: str) -> str | None:
        """The text at a path; None where there is none (404)."""
        if not self._token:
            self._renew_token()
        answer = self._get(path)
        if answer.status_code == 401:  # the token has run out
            self._renew_token()
            answer = self._get(path)
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return answer.text

    def _get(self, path: str) -> requests.Response:
        headers = {"X-aws-ec2-metadata-token": self._token}
        return self._session.get(f"{self._base}/{path}", headers=headers, timeout=_ANSWER_SECONDS)

    def _renew_token(self) -> None:
        answer = self._ask_token()
        answer.raise_for_status()
        self._token = answer.text

    def _ask_token(self) -> requests.Response:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_SECONDS)}
        return self._session.put(
            f"{self._base}/api/token", headers=headers, timeout=_ANSWER_SECONDS
        )


class Watcher:
    """Looks at the metadata, and drains the node once per kind of notice.

    Args:
        metadata: of this machine.
        drain: drains the node for a notice; raises Fault where it could not.
        say: called with a sentence for every notice, for its outcome, and for each new problem.
        rebalance_seconds: what a rebalance recommendation leaves to finish.
    """

    def __init__(
        self,
        metadata: Metadata,
        drain: Callable[[Notice], None],
        say: Callable[[str], None],
        *,
        rebalance_seconds: float,
    ) -> None:
        self._metadata, self._drain, self._say = metadata, drain, say
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
            self._drain(notice)
        except Fault as error:
            self._say_once(kind, f"{notice.text}, and its node is NOT drained: {error}")
            return
        self._drained.add(notice)
        self._trouble.pop(kind, None)
        left = max(0.0, (notice.deadline - datetime.now(UTC)).total_seconds())
        self._say(f"{notice.text}: its Ray node is drained, {left:.0f} s are left")

    def _say_once(self, kind: str, text: str) -> None:
        if self._trouble.get(kind) != text:
            self._trouble[kind] = text
            self._say(text)


def labels() -> str:
    """Of this EC2 machine, as `ray start --labels` takes them.

    Raises:
        Unreachable: there is no metadata service, or it does not know.
        UserError: its endpoint is no URL.
    """
    metadata = Metadata(metadata_endpoint())
    metadata.check()
    return ",".join(f"{label}={value}" for label, value in metadata.machine().items())


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
        metadata, partial(drain, node_id=node_id), say, rebalance_seconds=rebalance_seconds
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


def _moment(text: str) -> datetime:
    """A time of the metadata, such as 2026-11-22T10:00:00Z."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment.astimezone(UTC)
