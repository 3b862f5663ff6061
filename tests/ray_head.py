"""A Ray for tests, of no more processes than they need: each is a Python that imports Ray, which is
most of what a test on Ray costs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET, REGION, ZONE

SPOT = {
    INSTANCE_TYPE: "g6.xlarge",
    MARKET: "spot",
    REGION: "eu-central-1",
    ZONE: "eu-central-1b",
}
"""Labels of the node that all tests of a process share."""
ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # 15 by default: beside other work its workers would starve
    "OMP_NUM_THREADS": "1",
}

T = TypeVar("T")


@contextmanager
def ray_head(*, cpus: int = 2, labels: dict[str, str] = SPOT, port: int = 0) -> Iterator[Cluster]:
    """A Ray of one node, to be joined at its `address`, until the block ends.

    Without the autoscaler, the monitor of its logs and the dashboard, which Ray starts, and waits
    for, even where it is to serve nothing.

    Args:
        port: at which it answers; 0 for any.
    """
    settings: dict[str, Any] = {
        "num_cpus": cpus,
        "labels": labels,
        "gcs_server_port": port or None,
        "include_dashboard": False,
        "include_log_monitor": False,
        "no_monitor": True,
        "dashboard_agent_listen_port": 0,  # any: several test processes have a Ray each
    }
    with (
        patch.dict(os.environ, ENVIRONMENT),
        patch.object(Node, "start_api_server", lambda self, **_: None),
    ):
        cluster = started(lambda: Cluster(initialize_head=True, head_node_args=settings))
    try:
        yield cluster
    finally:
        cluster.shutdown()


def started(start: Callable[[], T]) -> T:
    """What `start` returns: Ray gives a node 30 s to start, and a busy machine needs more. What an
    attempt leaves behind would hold its port."""
    for _ in range(2):
        before = psutil.Process().children()
        with contextlib.suppress(Exception):  # a plain Exception
            return start()
        for left in psutil.Process().children():
            if left not in before:
                left.kill()
                left.wait()
    return start()
