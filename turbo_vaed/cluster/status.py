"""What a cluster has, waits for and could not get, as its autoscaler reports it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.cluster.nodes import INSTANCE_TYPE, MARKET, REGION, ZONE
from turbo_vaed.cluster.session import knock
from turbo_vaed.costs import PriceBook
from turbo_vaed.costs.money import plain
from turbo_vaed.errors import TurboVaedError, Unreachable

_SECONDS = 10


def rows(address: str, book: PriceBook, refusals: Path) -> list[dict[str, Any]]:
    """A row per machine that is up or starting, and per type that EC2 refused.

    Args:
        address: of Ray's head, `host:port`.
        refusals: what the provider keeps, if it is this machine's.

    Raises:
        Unreachable: no Ray answers, or no autoscaler has reported to it.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    knock(address)
    try:
        found = get_cluster_status(address, timeout=_SECONDS)
    except Exception as error:  # Ray's own, of whatever kind
        raise Unreachable(
            f"Ray's head at {address} reports no autoscaler: {error}; its log is monitor.log and "
            "monitor.err in session_latest/logs of its --temp-dir (/tmp/ray by default)"
        ) from error
    return [
        *(_node(each, "working", book) for each in found.active_nodes),
        *(_node(each, "idle", book) for each in found.idle_nodes),
        *(_row(each.ray_node_type_name, "starting", each.details) for each in found.pending_nodes),
        *(
            _row(each.ray_node_type_name, f"asked for, {each.count}", each.details)
            for each in found.pending_launches
        ),
        *_refused(refusals),
    ]


def _row(node_type: str, state: str, why: str | None = None, **known: Any) -> dict[str, Any]:
    return {
        "type": node_type,
        "state": state,
        "zone": known.get("zone"),
        "machine": known.get("machine"),
        "usd_per_hour": known.get("usd_per_hour"),
        "details": why or None,
    }


def _node(node: Any, state: str, book: PriceBook) -> dict[str, Any]:
    labels = node.labels or {}
    usd: Decimal | None = None
    why: str | None = None
    try:
        usd = book.usd_per_hour(
            labels.get(INSTANCE_TYPE, "node"),
            labels.get(MARKET, "local"),
            labels.get(REGION, ""),
            labels.get(ZONE),
        )
    except TurboVaedError as error:
        why = str(error)
    if usd is None and not why:
        why = "its price is not known"
    return _row(
        node.ray_node_type_name,
        state,
        why,
        zone=labels.get(ZONE),
        machine=node.instance_id,
        usd_per_hour=None if usd is None else plain(usd),
    )


def _refused(path: Path) -> Iterator[dict[str, Any]]:
    """Each type that was refused, with how often, and the last time and reason."""
    last: dict[str, dict[str, str]] = {}
    count: dict[str, int] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        last[row["type"]] = row
        count[row["type"]] = count.get(row["type"], 0) + 1
    for name, row in last.items():
        yield _row(
            name, "refused", f"{count[name]} times, last at {row['at'][:19]} UTC: {row['code']}: "
            f"{row['why']}",
        )  # fmt: skip
