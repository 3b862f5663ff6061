"""How Ray's autoscaler starts machines of EC2: by Ray's own provider, with what it lacks.

Loaded by the autoscaler's process (`provider.module` of its configuration). Ray 2.60 sets a node
type aside when its machine does not come up in time, but not when EC2 refuses to start one: it asks
for the same type again, every five seconds, for ever.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)

REFUSALS = "refusals_file"
"""Key of the provider's configuration: where refusals are kept for `turbo-vaed cluster status`."""
_KEPT = 100
_refused: dict[str, float] = {}
_lock = threading.Lock()
_log = logging.getLogger(__name__)


class Ec2Nodes(AWSNodeProvider):
    """EC2's machines, as Ray's provider starts them; a type that EC2 refuses is set aside."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        _count_refusals()
        super().__init__(provider_config, cluster_name)  # type: ignore[no-untyped-call]

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Start machines of one type, in the first of its subnets that has any.

        Raises:
            NodeLaunchException: EC2 refuses in all of them.
        """
        with setting_aside(tags[TAG_RAY_USER_NODE_TYPE], self.provider_config.get(REFUSALS)):
            created: dict[str, Any] = super().create_node(node_config, tags, count)
            return created


@contextmanager
def setting_aside(node_type: str, refusals_file: str | None) -> Iterator[None]:
    """Have the autoscaler set `node_type` aside where the block fails, and keep the reason."""
    try:
        yield
    except Exception as error:
        with _lock:
            _refused[node_type] = time.time()
            if refusals_file:
                _keep(Path(refusals_file), node_type, error)
        raise


def _keep(path: Path, node_type: str, error: Exception) -> None:
    code = error.category if isinstance(error, NodeLaunchException) else type(error).__name__
    why = error.description if isinstance(error, NodeLaunchException) else str(error)
    row = {"at": datetime.now(UTC).isoformat(), "type": node_type, "code": code, "why": why}
    try:
        kept = path.read_text().splitlines()[1 - _KEPT :] if path.exists() else []
        path.write_text("\n".join([*kept, json.dumps(row)]) + "\n")
    except OSError as failure:  # of no use to whoever waits for a machine
        _log.warning("the refusal of %s is not kept: %s", node_type, failure)


def _count_refusals() -> None:
    """Have this process's autoscaler take a refusal for a machine that did not come up. Ray has no
    other way in: its event of a failed launch does not even name the type."""
    monitors: Any = CloudResourceMonitor
    own = monitors.get_recoverable_resource_availabilities
    if getattr(own, "counts_refusals", False):
        return

    def counted(monitor: Any) -> dict[str, float]:
        with _lock:
            monitor._last_unavailable_timestamp.update(_refused)
            _refused.clear()
        found: dict[str, float] = own(monitor)
        return found

    counted.counts_refusals = True  # type: ignore[attr-defined]
    monitors.get_recoverable_resource_availabilities = counted
