"""What goes wrong, from outside the product: machines vanish, S3 fails, disks fill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from tests import ray_head
from tests.drills import endpoint

CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    **ray_head.ENVIRONMENT,
}
"""What a cluster of machines that may vanish is started with: a lost one is found out in seconds,
not in half a minute."""


class Machines:
    """A Ray cluster of processes: a head, and machines of one CPU each; or a head alone."""

    def __init__(
        self, cluster: Any, count: int = 0, labels: Mapping[str, str] | None = None
    ) -> None:
        """Add `count` machines to a running cluster; without any, its head is the machine."""
        self._cluster, self._labels = cluster, dict(labels or {})
        self.address: str = cluster.address
        self.nodes: list[Any] = [] if count else [cluster.head_node]
        self._count = len(self.nodes) + count
        self.mend()

    @classmethod
    @contextmanager
    def started(
        cls,
        count: int,
        labels: Mapping[str, str] | None = None,
        port: int = 0,
        settings: Mapping[str, str] = CLUSTER,
    ) -> Iterator[Machines]:
        """A cluster of a head without a CPU and `count` machines, until the block ends.

        Args:
            labels: of each of them.
            port: at which the head answers; 0 for any.
            settings: in its environment.
        """
        head = ray_head.ray_head(cpus=0, labels=dict(labels or {}), port=port)
        with environment(settings), head as cluster:
            yield cls(cluster, count, labels)

    def mend(self) -> None:
        """Replace the machines that were lost."""
        given = {"num_cpus": 1, "labels": self._labels}
        while len(self.nodes) < self._count:
            self.nodes.append(ray_head.started(lambda: self._cluster.add_node(**given)))

    def forget_lost(self) -> int:
        """Machines whose raylet has ended are none any more; how many."""
        lost = [
            node
            for node in self.nodes
            if node.all_processes["raylet"][0].process.poll() is not None
        ]
        self.nodes = [node for node in self.nodes if node not in lost]
        return len(lost)

    def in_use(self) -> Any:
        """A machine that has a worker of Ray Train, not that of rank 0 if there are several."""
        found = [node for node in self.nodes if self.workers(node)]
        assert found, "no worker of Ray Train runs"
        return found[-1]

    def workers(self, node: Any) -> list[psutil.Process]:
        """The processes of Ray Train's workers on a machine."""
        below = psutil.Process(_raylet(node)).children(recursive=True)
        return [process for process in below if "RayTrainWorker" in " ".join(_command(process))]

    def at_work(self) -> list[psutil.Process]:
        """The processes of tasks and actors on all machines, without idle ones."""
        below = [
            process
            for node in self.nodes
            if psutil.pid_exists(_raylet(node))
            for process in psutil.Process(_raylet(node)).children(recursive=True)
        ]
        names = [(process, " ".join(_command(process))) for process in below]
        return [one for one, name in names if name.startswith("ray::") and "IDLE" not in name]

    def kill_raylet(self, node: Any) -> None:
        """SIGKILL to a machine's raylet alone: what runs below it is to end by itself."""
        self.nodes.remove(node)
        kill(_raylet(node))

    def kill_head(self) -> None:
        """SIGKILL to the processes of the head alone."""
        for processes in self._cluster.head_node.all_processes.values():
            for one in processes:
                kill(one.process.pid)

    def lose(self, node: Any) -> None:
        """SIGKILL to a machine's raylet and to all that runs below it."""
        self.nodes.remove(node)
        try:
            raylet = psutil.Process(_raylet(node))
        except psutil.NoSuchProcess:
            return  # a raylet that was drained leaves at its deadline
        for process in (raylet, *raylet.children(recursive=True)):
            kill(process.pid)


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    """SIGKILL, to a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A loopback server in a thread; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def node_watcher(machines: Machines, node: Any, deadline: datetime) -> Iterator[None]:
    """`turbo-vaed node watch` on a machine whose metadata say that EC2 takes it at `deadline`."""
    notice = f'{{"action": "terminate", "time": "{deadline.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"}}'

    class Metadata(endpoint.Quiet):
        def do_PUT(self) -> None:
            self.answer(200, b"token")

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != "token":
                self.answer(401, b"")
            elif self.path == "/latest/meta-data/spot/instance-action":
                self.answer(200, notice.encode())
            else:
                self.answer(404, b"")

    with _served(Metadata) as url:
        given = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "RAY_ADDRESS": machines.address}
        turbo_vaed = str(Path(sys.executable).with_name("turbo-vaed"))
        command = [turbo_vaed, "node", "watch", "--node-id", node.node_id, "--poll-seconds", "1"]
        watcher = subprocess.Popen(command, env={**os.environ, **given})
        try:
            yield
        finally:
            kill(watcher.pid)
            watcher.wait()


class FlakyS3:
    """An S3 that answers 500 to everything while `is_down`."""

    def __init__(self, url: str) -> None:
        self.url, self.is_down, self.refused = url, False, 0

    @classmethod
    @contextmanager
    def started(cls, bucket: str) -> Iterator[FlakyS3]:
        """moto's S3 with a bucket, behind a proxy; clients find it by the environment."""
        import boto3
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        _, port = server.get_host_and_port()
        found: list[FlakyS3] = []

        def refuses() -> bool:
            found[0].refused += found[0].is_down
            return found[0].is_down

        with _served(endpoint.passing_on(port, refuses)) as url:
            found.append(cls(url))
            given = {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "drill",
                "AWS_SECRET_ACCESS_KEY": "drill",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            try:
                with environment(given):
                    boto3.client("s3").create_bucket(Bucket=bucket)
                    yield found[0]
            finally:
                server.stop()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own at `folder`, until the block ends; needs root.

    Raises:
        PermissionError: it cannot be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "drill", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"a small disk needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Take all that is left of a disk."""
    with file.open("wb", buffering=0) as ballast:
        for size in (2**20, 2**12):
            try:
                while True:
                    ballast.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
