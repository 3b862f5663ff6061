"""The nodes that stages run on, this machine or those of a Ray cluster, and what they cost.

A cluster's nodes are priced by their labels: `ray start --labels "$(turbo-vaed node labels)"` sets
them on EC2. They are Ray's own where it has them, so that a KubeRay cluster needs one more at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from decimal import Decimal
from typing import Any

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.schema import Params, PriceParams
from turbo_vaed.config.stages import RAY_STAGES
from turbo_vaed.costs import Nodes, PartlyPriced, PriceBook, Rate, steady, total_usd
from turbo_vaed.costs.aws_prices import Ec2Prices
from turbo_vaed.costs.prices import MARKETS
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.settings import Settings

INSTANCE_TYPE = "turbo-vaed.io/instance-type"
MARKET = "ray.io/market-type"
REGION = "ray.io/availability-region"
ZONE = "ray.io/availability-zone"
EC2_MINIMUM_SECONDS = 60
"""Linux instances are charged by the second, and for at least a minute:
https://aws.amazon.com/ec2/pricing/on-demand/"""
NodeList = Callable[[], list[dict[str, Any]]]
"""Lists nodes in Ray's form: mappings with `NodeID` and `Labels`."""


def ray_nodes() -> list[dict[str, Any]]:
    """The living nodes of the connected Ray."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def count_by_type() -> Counter[str]:
    """How many machines of each of the autoscaler's node types there are. Ray must be connected."""
    labels = [node.get("Labels") or {} for node in ray_nodes()]
    return Counter(
        f"{each[INSTANCE_TYPE]}-{each.get(MARKET)}" for each in labels if INSTANCE_TYPE in each
    )


def own_node() -> str:
    """Ray's id of the node that this process runs on. Ray must be connected."""
    import ray

    return ray.get_runtime_context().get_node_id()


def price_book(params: Params, settings: Settings) -> PriceBook:
    """As `book_of`, of a customer."""
    return book_of(params.prices, settings)


def book_of(prices: PriceParams, settings: Settings) -> PriceBook:
    """The configured prices and those of AWS, whose quotes are cached in `state/prices`."""
    return PriceBook(
        local_usd_per_hour=prices.local_usd_per_hour,
        ec2=Ec2Prices(
            folder=settings.root / "state" / "prices",
            max_age=timedelta(hours=prices.quote_hours),
        ),
    )


def nodes_of(params: Params, settings: Settings, stage: str, look: NodeList = ray_nodes) -> Nodes:
    """The nodes that `stage` uses and their rates, for its meter.

    Args:
        look: lists a cluster's nodes, by default those of Ray, which must be connected by then.

    Raises:
        BudgetRefused: the price of this machine is unknown; the meter raises the same for EC2
            instances when it starts.
    """
    book, together = price_book(params, settings), params.prices.cluster_usd_per_hour
    by_ray = _runs_on_cluster(settings, stage)
    if by_ray and together is not None:
        source = "prices.cluster_usd_per_hour"
        return steady(
            Rate(resource="cluster", market="local", usd_per_hour=together, source=source)
        )
    if by_ray or settings.machine:
        return lambda: rates(book, look if by_ray else _this_machine(settings))
    price = book.require("node", "local")
    return steady(
        Rate(resource="node", market="local", usd_per_hour=price.usd_per_hour, source=price.source)
    )


def price_of(params: Params, settings: Settings, stage: str) -> Decimal:
    """USD per hour of all nodes that `stage` would run on now.

    Raises:
        BudgetRefused: the price is unknown.
        Unreachable: no Ray answers.
    """
    nodes = nodes_of(params, settings, stage)
    with ray_session(settings.ray_address) if _runs_on_cluster(settings, stage) else nullcontext():
        return total_usd(rate.usd_per_hour for rate in nodes().values())


def most_usd_per_hour(
    params: Params, settings: Settings, stage: str, book: PriceBook | None = None
) -> Decimal:
    """The most USD per hour that the nodes of `stage` can cost while it runs; budgets use this.

    Args:
        book: one that remembers which prices AWS did not give; a fresh one by default.

    Raises: as `price_of`.
    """
    by_ray = _runs_on_cluster(settings, stage)
    by_labels = params.prices.cluster_usd_per_hour is None if by_ray else bool(settings.machine)
    if not by_labels:
        return price_of(params, settings, stage)
    with ray_session(settings.ray_address) if by_ray else nullcontext():
        look = ray_nodes if by_ray else _this_machine(settings)
        return most_usd_of_nodes(book or price_book(params, settings), look)


def rates(book: PriceBook, look: NodeList = ray_nodes) -> dict[str, Rate]:
    """What each node costs now, by its id.

    Raises:
        PartlyPriced: a node's price is unknown, or its labels do not say what it is; has the rates
            of the other nodes.
    """
    known: dict[str, Rate] = {}
    unknown: list[str] = []
    for node in look():
        try:
            known[node["NodeID"]] = _rate(book, node["NodeID"], node.get("Labels") or {})
        except (BudgetRefused, UserError) as error:
            unknown.append(str(error))
    if unknown:
        raise PartlyPriced("; ".join(unknown), known)
    return known


def most_usd_of_nodes(book: PriceBook, look: NodeList = ray_nodes) -> Decimal:
    """The most USD per hour that the nodes can cost: EC2 takes a spot instance back before it costs
    more than on demand.

    Raises:
        BudgetRefused, UserError: a node's price is unknown, or its labels do not say what it is.
    """
    total = Decimal(0)
    for node in look():
        labels = dict(node.get("Labels") or {})
        if labels.get(MARKET) == "spot":
            labels[MARKET] = "on-demand"
        total += _rate(book, node["NodeID"], labels).usd_per_hour
    return total


def _runs_on_cluster(settings: Settings, stage: str) -> bool:
    return stage in RAY_STAGES and settings.on_a_cluster


def _this_machine(settings: Settings) -> NodeList:
    """This machine alone, as Ray lists a node."""
    return lambda: [{"NodeID": "this machine", "Labels": settings.machine}]


def _rate(book: PriceBook, node: str, labels: Mapping[str, str]) -> Rate:
    market = labels.get(MARKET, "")
    if market not in MARKETS or (market != "local" and not labels.get(INSTANCE_TYPE)):
        raise BudgetRefused(
            f"the labels of node {node[:12]} of the Ray cluster, {dict(labels)}, do not say what "
            f"it costs: start it with --labels naming {MARKET} ({', '.join(MARKETS)}), "
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
