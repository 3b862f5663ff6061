"""A child process watches a cluster, the end of which this process survives."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
import ray

from tests.ray_head import SPOT, ray_head
from turbo_vaed.cluster import watch
from turbo_vaed.cluster.watch import Watch
from turbo_vaed.errors import Unreachable

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow


def wait_until_unreachable(watching: Watch) -> None:
    deadline = time.monotonic() + 120
    with pytest.raises(Unreachable, match=re.escape(watching._address)):
        while time.monotonic() < deadline:
            watching.nodes()
            time.sleep(0.1)


def test_a_child_process_lists_the_nodes_until_it_is_silent(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watch(ray_cluster.address, seconds=0.1) as watching:
        (node,) = watching.nodes()
        assert node["Labels"].items() >= SPOT.items() and watching.own_node == node["NodeID"]
        assert not ray.is_initialized(), "not in this process"
        monkeypatch.setattr(watch, "SILENT_SECONDS", 0.5)
        os.kill(watching._child.pid, signal.SIGSTOP)
        wait_until_unreachable(watching)
    assert watching._child.poll() is not None


def test_the_nodes_are_unknown_once_the_child_process_has_ended(ray_cluster: Cluster) -> None:
    with Watch(ray_cluster.address, seconds=0.1) as watching:
        watching._child.kill()
        wait_until_unreachable(watching)


@pytest.mark.nightly
def test_this_process_survives_the_end_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child then goes silent or ends, as it does above at less cost."""
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.5)
    with ray_head() as cluster, Watch(cluster.address, seconds=0.1) as watching:
        assert watching.nodes()
        cluster.shutdown()
        wait_until_unreachable(watching)
    assert watching._child.poll() is not None
