"""The nodes of the connected Ray cluster, and what each costs, by the labels that it bears.

`ray start --labels "$(turbo-vaed node labels)"` gives a node its labels on EC2. Those of Ray itself
are used where it has them, so that a KubeRay cluster needs one more at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from turbo_vaed.costs import PartlyPriced, PriceBook, Rate
from turbo_vaed.costs.prices import MARKETS
from turbo_vaed.errors import BudgetRefused, UserError

INSTANCE_TYPE = "turbo-vaed.io/instance-type"
MARKET = "ray.io/market-type"
REGION = "ray.io/availability-region"
ZONE = "ray.io/availability-zone"
EC2_MINIMUM_SECONDS = 60
"""Linux machines are charged by the second, and for a minute at least:
https://aws.amazon.com/ec2/pricing/on-demand/"""


def ray_nodes() -> list[dict[str, Any]]:
    """What the connected Ray knows of its nodes that are alive."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def own_node(address: str) -> str:
    """Ray's id of the node that this process runs on; empty for one that is a client from outside.
    Ray has to be connected."""
    import ray

    return "" if address.startswith("ray://") else ray.get_runtime_context().get_node_id()


def rates(
    book: PriceBook, nodes: Callable[[], list[dict[str, Any]]] = ray_nodes
) -> dict[str, Rate]:
    """What each node of the cluster costs now, by Ray's id of it.

    Raises:
        PartlyPriced: a node's price is not known, or its labels do not say what it is; holds the
            rates of the others.
    """
    known: dict[str, Rate] = {}
    unknown: list[str] = []
    for node in nodes():
        try:
            known[node["NodeID"]] = _rate(book, node["NodeID"], node.get("Labels") or {})
        except (BudgetRefused, UserError) as error:
            unknown.append(str(error))
    if unknown:
        raise PartlyPriced("; ".join(unknown), known)
    return known


def most_usd_per_hour(
    book: PriceBook, nodes: Callable[[], list[dict[str, Any]]] = ray_nodes
) -> Decimal:
    """USD per hour that the nodes can come to: EC2 takes a spot machine back before it costs more
    than on demand.

    Raises: as `rates`.
    """
    total = Decimal(0)
    for node in nodes():
        labels = dict(node.get("Labels") or {})
        if labels.get(MARKET) == "spot":
            labels[MARKET] = "on-demand"
        total += _rate(book, node["NodeID"], labels).usd_per_hour
    return total


def _rate(book: PriceBook, node: str, labels: Mapping[str, str]) -> Rate:
    market = labels.get(MARKET, "")
    if market not in MARKETS or (market != "local" and not labels.get(INSTANCE_TYPE)):
        raise BudgetRefused(
            f"node {node[:12]} of the Ray cluster bears the labels {dict(labels)}, which do not "
            f"say what it costs: start it with --labels naming {MARKET} ({', '.join(MARKETS)}), "
            f"and for EC2 {INSTANCE_TYPE}, {REGION} and {ZONE} (`turbo-vaed node labels` prints "
            "them), or set prices.cluster_usd_per_hour in finance.yaml for all nodes together"
        )
    resource = labels.get(INSTANCE_TYPE) or "node"
    price = book.require(resource, market, labels.get(REGION, ""), labels.get(ZONE) or None)
    return Rate(
        resource=resource,
        market=market,
        usd_per_hour=price.usd_per_hour,
        source=price.source,
        minimum_seconds=0 if market == "local" else EC2_MINIMUM_SECONDS,
    )
