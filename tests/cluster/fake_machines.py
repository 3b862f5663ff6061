"""Machines for Ray's autoscaler that are raylets on this one: Ray's fake provider, with types that
cannot be had. Loaded by the autoscaler's process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from turbo_vaed.cluster import provider

GONE = "gone_file"
"""Key of the provider's configuration: a file with a list of the types that cannot be had."""


class FakeMachines(FakeMultiNodeProvider):  # type: ignore[misc]
    """`provider.Ec2Nodes`, but for where its machines come from."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        provider._count_refusals()
        super().__init__(provider_config, cluster_name)

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, Any],
        labels: dict[str, str],
    ) -> None:
        """A raylet for each machine, unless its type cannot be had."""
        name = tags[TAG_RAY_USER_NODE_TYPE]
        with provider.setting_aside(name, self.provider_config.get(provider.REFUSALS)):
            if name in json.loads(Path(self.provider_config[GONE]).read_text()):
                raise NodeLaunchException("InsufficientInstanceCapacity", f"no {name}", None)
            super().create_node_with_resources_and_labels(
                node_config, tags, count, resources, labels
            )

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Without those whose raylet was killed, as EC2 lists no machine that it took."""
        with self.lock:
            for name, node in list(self._nodes.items()):
                if "node" in node and not node["node"].remaining_processes_alive():
                    del self._nodes[name]
        found: list[str] = super().non_terminated_nodes(tag_filters)
        return found
