"""What a team's run stands on, as processes that can be killed and started again, where each was:
PostgreSQL, an MLflow server, S3's endpoint and a Ray cluster; Prefect's server stays."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import boto3
import botocore.exceptions

from tests.costs.conftest import Postgres
from tests.drills import faults
from tests.drills.endpoint import HOST
from tests.e2e import checkout
from turbo_vaed.cluster.nodes import MARKET

MACHINES = 2
BUCKET = "drill"
_READY_SECONDS = 240.0
_S3 = {
    "AWS_ACCESS_KEY_ID": "drill",
    "AWS_SECRET_ACCESS_KEY": "drill",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_RAY = {
    **faults.CLUSTER,
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
"""A machine that is lost is found out after five seconds, one that is only busy after half a
minute; who is connected to a head that is gone gives up after ten seconds, and not after a minute.
"""


class Server(Protocol):
    """One of them."""

    def start(self) -> None:
        """Start it, for the first time or again; it may answer later."""

    def kill(self) -> None:
        """SIGKILL."""


@dataclass
class Program:
    """A server that is a command."""

    command: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=checkout.ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,  # it has children
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Database:
    """PostgreSQL, of which the first process is killed: the others notice and end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self.postgres = Postgres(folder)

    def start(self) -> None:
        give_up = time.monotonic() + _READY_SECONDS
        while True:
            try:
                return self.postgres.start()
            except AssertionError:  # some of the killed one's processes are still there
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.5)

    def kill(self) -> None:
        self.postgres.stop(signal.SIGKILL)


class Cluster:
    """Ray: a head that computes nothing, and machines of one CPU each."""

    def __init__(self, port: int) -> None:
        self.address = f"{HOST}:{port}"
        self._port, self._open = port, ExitStack()

    def start(self) -> None:
        self._open.close()  # machines end with their head
        self.machines = self._open.enter_context(
            faults.Machines.started(MACHINES, {MARKET: "local"}, self._port, _RAY)
        )

    def kill(self) -> None:
        self.machines.kill_head()

    def close(self) -> None:
        self._open.close()


@dataclass(frozen=True, kw_only=True)
class Servers:
    """All of them."""

    database: Database
    cluster: Cluster
    all: Mapping[str, Server]
    """By their names; those that may be killed."""
    environment: Mapping[str, str]
    """By which a run finds them."""
    mlflow_url: str

    def wait_until_ready(self) -> None:
        """Until all that run answer.

        Raises:
            AssertionError: one does not.
        """
        give_up = time.monotonic() + _READY_SECONDS
        while not (_answers(f"{self.mlflow_url}/health") and self._has_bucket()):
            assert time.monotonic() < give_up, "MLflow or S3 does not answer"
            time.sleep(0.5)

    def _has_bucket(self) -> bool:
        s3 = boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"])
        with suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            s3.head_bucket(Bucket=BUCKET)
            return True
        return False


@contextmanager
def started(folder: Path) -> Iterator[Servers]:
    """All servers, until the block ends.

    Args:
        folder: whom PostgreSQL runs as may enter it.
    """
    ports = _free_ports("objects", "S3", "MLflow", "Ray head")
    endpoint = f"http://{HOST}:{ports['S3']}"
    with (
        ExitStack() as open_,
        faults.environment({**_RAY, **_S3, "AWS_ENDPOINT_URL": endpoint}),
    ):

        def program(name: str, arguments: list[str], **environment: str) -> Program:
            log = folder / f"{name}.log"
            found = Program([sys.executable, "-m", *arguments], log, environment)
            found.start()
            open_.callback(found.kill)
            return found

        program("objects", ["moto.server", "-H", HOST, "-p", str(ports["objects"])])
        own, behind = str(ports["S3"]), str(ports["objects"])
        s3 = program("S3", ["tests.drills.endpoint", own, behind])
        database = Database(folder / "postgres")
        open_.callback(database.postgres.stop, signal.SIGQUIT)
        mlflow = program(
            "MLflow",
            ["mlflow", "server", "--host", HOST, "--port", str(ports["MLflow"]), "--workers", "1"],
            MLFLOW_BACKEND_STORE_URI=database.postgres.new_database(),
            MLFLOW_ARTIFACTS_DESTINATION=f"s3://{BUCKET}/mlflow",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        cluster = Cluster(ports["Ray head"])
        open_.callback(cluster.close)
        cluster.start()
        prefect = open_.enter_context(checkout.prefect_server(folder))
        mlflow_url = f"http://{HOST}:{ports['MLflow']}"
        servers = Servers(
            database=database,
            cluster=cluster,
            all={"Ray head": cluster, "PostgreSQL": database, "MLflow": mlflow, "S3": s3},
            environment={
                **_RAY,
                **_S3,
                "AWS_ENDPOINT_URL": endpoint,
                "TURBO_VAED_LEDGER_URL": database.postgres.new_database(),
                "TURBO_VAED_CHECKPOINTS": f"s3://{BUCKET}/checkpoints",
                "MLFLOW_TRACKING_URI": mlflow_url,
                "RAY_ADDRESS": cluster.address,
                **prefect,
            },
            mlflow_url=mlflow_url,
        )
        _make_bucket(endpoint)
        servers.wait_until_ready()
        yield servers


def _make_bucket(endpoint: str) -> None:
    give_up = time.monotonic() + _READY_SECONDS
    while True:
        try:
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            assert time.monotonic() < give_up, "S3 does not answer"
            time.sleep(0.2)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def _free_ports(*names: str) -> dict[str, int]:
    """A port of its own for each, below those that clients get."""
    found: dict[str, int] = {}
    for port in random.sample(range(20000, 32000), 100):  # other drills may run
        if len(found) == len(names):
            break
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                found[names[len(found)]] = port
    return found
