"""A cluster that scales: Ray's head, its autoscaler and raylets that it starts on this machine.

The machines are Ray's fake ones; configuration, ways to ask and reaction to refusals are ours.
`ray.cluster_utils.AutoscalingCluster` would first stop every Ray of this machine. Ten minutes
without capacity are compressed to some seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)

from tests.cluster.environments import candidate, environment, usd_per_hour
from tests.cluster.fake_machines import GONE
from tests.loopback import free_port
from tests.ray_head import ENVIRONMENT
from turbo_vaed.cluster import status
from turbo_vaed.cluster.autoscaler import HEAD, Shape, node_types, render
from turbo_vaed.cluster.drain import Replacement
from turbo_vaed.cluster.machines import HEAD_ENVIRONMENT
from turbo_vaed.cluster.nodes import INSTANCE_TYPE
from turbo_vaed.cluster.scaling import wait_for_machines
from turbo_vaed.costs import PriceBook

pytestmark = pytest.mark.nightly

REPOSITORY = Path(__file__).parents[2]
FIRST, SECOND = "g5.xlarge-spot", "g6.xlarge-spot"
LONG_SECONDS = 240.0


class Cluster:
    """A head with an autoscaler, whose machines have a CPU each."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address, self.config = address, folder / "cluster.yaml"
        self.gone, self.refusals = folder / "gone.json", folder / "refusals.jsonl"
        self.lose_types()
        shapes = {name: Shape(cpus=1, gpus=0) for name in ("g5.xlarge", "g6.xlarge")}
        where = environment(max_workers=4)
        order, _ = node_types(
            where, [candidate("g5.xlarge"), candidate("g6.xlarge")], shapes, usd_per_hour
        )
        document = render(
            where, order, head_address=address, affordable={FIRST, SECOND}, refusals=self.refusals
        )
        document["provider"] |= {
            "module": "tests.cluster.fake_machines.FakeMachines",
            GONE: str(self.gone),
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        }
        types = document["available_node_types"]
        types[FAKE_HEAD_NODE_TYPE] = types.pop(HEAD)
        document["head_node_type"] = FAKE_HEAD_NODE_TYPE
        self.config.write_text(yaml.safe_dump(document))

    def lose_types(self, *names: str) -> None:
        self.gone.write_text(json.dumps(names))

    def machines(self) -> list[dict[str, Any]]:
        return [node for node in ray.nodes() if node["Alive"] and INSTANCE_TYPE in node["Labels"]]

    def until(self, holds: Callable[[], object], what: str) -> None:
        end = time.monotonic() + LONG_SECONDS
        while not holds():
            assert time.monotonic() < end, f"{what}: {self.machines()}"
            time.sleep(0.5)


def kill(nodes: list[dict[str, Any]]) -> None:
    """As EC2 ends machines, without notice and all at once."""
    wanted = {node["NodeID"] for node in nodes}
    for process in psutil.process_iter(["name", "environ"]):
        variables = process.info["environ"] or {}
        if process.info["name"] == "raylet" and variables.get("RAY_CLOUD_INSTANCE_ID") in wanted:
            process.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="tv"))  # a socket's path is short
    port = free_port("")
    address = f"{ray.util.get_node_ip_address()}:{port}"
    found = Cluster(folder, address)
    variables = {
        **os.environ, **ENVIRONMENT, **HEAD_ENVIRONMENT,
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}",
        "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", f"--temp-dir={folder}/ray",
        "--object-store-memory=100000000", f"--autoscaling-config={found.config}",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ADDRESS", address)  # for the child processes of what is tested
        try:
            subprocess.run(command, env=variables, check=True, timeout=LONG_SECONDS)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            yield found
        finally:
            ray.shutdown()
            for process in psutil.process_iter(["cmdline"]):
                if any(f"{folder}/ray" in part for part in process.info["cmdline"] or ()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_scales_falls_back_and_replaces_what_it_loses(cluster: Cluster) -> None:
    """One after the other on one cluster, whose start is most of what this takes."""
    said: list[str] = []

    # No capacity at all; a while later there is some, of the second type only.
    cluster.lose_types(FIRST, SECOND)
    some = threading.Timer(20, lambda: cluster.lose_types(FIRST))
    some.start()
    wait_for_machines(cluster.config, 1, said.append, seconds=LONG_SECONDS)
    (machine,) = cluster.machines()
    assert machine["Labels"][INSTANCE_TYPE] == "g6.xlarge"
    refused = [json.loads(line)["type"] for line in cluster.refusals.read_text().splitlines()]
    assert {FIRST, SECOND} == set(refused) and len(said) == 2
    book = PriceBook(local_usd_per_hour=None)
    rows = status.rows(cluster.address, book, cluster.refusals)
    assert {row["type"] for row in rows if row["state"] == "refused"} == {FIRST, SECOND}
    assert SECOND in {row["type"] for row in rows if row["state"] in ("idle", "working")}

    # A recommendation to leave: another one joins while this one works.
    cluster.lose_types()
    coordinator = get_or_create_autoscaling_coordinator()
    ask = {"requester_id": "a run", "expire_after_s": 3600}
    ray.get(coordinator.request_resources.remote(resources=[{"CPU": 1}], **ask))
    replacement = Replacement(machine["NodeID"])
    cluster.until(replacement.has_joined, "a replacement joins")
    assert len(cluster.machines()) == 2
    kill([machine])
    cluster.until(lambda: len(cluster.machines()) == 1, "the first is gone")

    # Two are taken at once.
    ray.get(coordinator.request_resources.remote(resources=[{"CPU": 1}] * 2, **ask))
    cluster.until(lambda: len(cluster.machines()) == 2, "a second one joins")
    lost = cluster.machines()
    kill(lost)
    ids = {node["NodeID"] for node in lost}
    cluster.until(
        lambda: len([n for n in cluster.machines() if n["NodeID"] not in ids]) == 2,
        "both are replaced",
    )
