"""Has the autoscaler bring the machines that a stage begins with: by itself it starts none before
something waits for room, and a stage does not begin without any."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.errors import Unreachable

CAPACITY_SECONDS = 3600.0
"""How long a stage waits where EC2 has none of its machines; it costs the controller's time."""
_REQUESTER = "turbo-vaed stage"
_LAPSES_SECONDS = 60.0
"""A request ends with whoever repeats it."""
_REPORT_SECONDS = 60.0


def wait_for_machines(
    config: Path,
    least: int,
    say: Callable[[str], None],
    *,
    seconds: float = CAPACITY_SECONDS,
    poll_seconds: float = 2.0,
) -> None:
    """Wait until the cluster has room for `least` workers. Ray must be connected.

    Args:
        config: of the autoscaler; says whether its machines have GPUs.
        say: called with a sentence when it begins to wait, once a minute, and when it has done.

    Raises:
        Unreachable: not within `seconds`.
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    kind = kind_of(config)
    if _room(kind) >= least:
        return
    coordinator = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
    began = said = time.monotonic()
    say(f"waiting for machines with {least} {kind} in all; turbo-vaed cluster status shows them")
    try:
        while _room(kind) < least:
            waited = time.monotonic() - began
            if waited > seconds:
                raise Unreachable(
                    f"no machines with {least} {kind} in all joined the cluster within "
                    f"{seconds / 60:.0f} minutes; turbo-vaed cluster status says why, and the "
                    "same command resumes the run"
                )
            if time.monotonic() - said > _REPORT_SECONDS:
                said = time.monotonic()
                say(f"no machines with {least} {kind} yet, after {waited / 60:.0f} minutes")
            coordinator.request_resources.remote(
                requester_id=_REQUESTER,
                resources=[{kind: 1.0}] * least,
                expire_after_s=_LAPSES_SECONDS,
            )
            time.sleep(poll_seconds)
        say(f"machines have joined after {time.monotonic() - began:.0f} s")
    finally:
        # What runs on them asks for itself; without work they are ended after some minutes.
        ray.get(coordinator.cancel_request.remote(_REQUESTER))


def kind_of(config: Path) -> str:
    """`GPU` or `CPU`: what a worker takes one of on the machines of a configuration."""
    types: dict[str, Any] = yaml.safe_load(config.read_text())["available_node_types"]
    return "GPU" if any(each["resources"].get("GPU") for each in types.values()) else "CPU"


def _room(kind: str) -> int:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(found.get(kind, 0))
