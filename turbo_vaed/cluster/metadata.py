"""The metadata of an EC2 machine: what it is, and whether EC2 takes it away.

Read by IMDSv2, a token first. Of notices:

- `spot/instance-action`: EC2 takes the machine at a given time, two minutes ahead
- `events/recommendations/rebalance`: EC2 expects to do so soon, and gives no time

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import requests

from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET, REGION, ZONE
from turbo_vaed.errors import Unreachable
from turbo_vaed.settings import metadata_endpoint

_TOKEN_LIFE_SECONDS = 21600
_ANSWER_SECONDS = 2.0
_FIRST_TRIES = 3


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
        return self._facts(asked)

    def address(self) -> tuple[str, str]:
        """This machine's id and its private IP address.

        Raises: as `machine`.
        """
        found = self._facts({"id": "instance-id", "ip": "local-ipv4"})
        return found["id"], found["ip"]

    def _facts(self, asked: dict[str, str]) -> dict[str, str]:
        """What the metadata has at each path below `meta-data`, by the keys of `asked`."""
        try:
            found = {name: self._read(f"meta-data/{path}") for name, path in asked.items()}
        except requests.RequestException as error:
            raise Unreachable(f"instance metadata: {error}") from error
        missing = [asked[name] for name, value in found.items() if not value]
        if missing:
            raise Unreachable(f"the instance metadata at {self._base} lacks {', '.join(missing)}")
        return {name: value.strip() for name, value in found.items() if value}

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


def labels() -> str:
    """Of this EC2 machine, as `ray start --labels` takes them.

    Raises:
        Unreachable: there is no metadata service, or it does not know.
        UserError: its endpoint is no URL.
    """
    metadata = Metadata(metadata_endpoint())
    metadata.check()
    return ",".join(f"{label}={value}" for label, value in metadata.machine().items())


def _moment(text: str) -> datetime:
    """A time of the metadata, such as 2026-11-22T10:00:00Z."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment.astimezone(UTC)
