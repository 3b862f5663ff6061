"""What the nodes of a stage cost: this machine, or the Ray cluster that the environment names;
and what a stage may spend."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from turbo_vaed.cluster import nodes as cluster
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.config.devices import most_usd_per_package
from turbo_vaed.config.schema import Params
from turbo_vaed.config.stages import RAY_STAGES
from turbo_vaed.costs import (
    Budget,
    Limits,
    Nodes,
    Price,
    PriceBook,
    Rate,
    Spending,
    format_usd,
    per_second,
    steady,
    total_usd,
)
from turbo_vaed.costs.aws_prices import Ec2Prices
from turbo_vaed.costs.money import AMOUNT_QUANTUM
from turbo_vaed.costs.run_context import DownstreamCost
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_LONGER = 1.2
"""Than before, what follows distillation may take."""


def price_book(params: Params, settings: Settings) -> PriceBook:
    """The configured prices and those of AWS, whose quotes are kept in `state/prices`."""
    return PriceBook(
        local_usd_per_hour=params.prices.local_usd_per_hour,
        ec2=Ec2Prices(
            folder=settings.root / "state" / "prices",
            max_age=timedelta(hours=params.prices.quote_hours),
        ),
    )


def nodes_of(
    params: Params,
    settings: Settings,
    stage: str,
    look: Callable[[], list[dict[str, Any]]] = cluster.ray_nodes,
) -> Nodes:
    """The nodes that `stage` holds and their rates, for its meter. Those of a cluster are asked of
    `look`, by default of Ray, which must be connected by then; this machine, where it is one of
    EC2, has EC2's price.

    Raises:
        BudgetRefused: the price of this machine is unknown; of machines of EC2 the meter finds out
            when it starts.
    """
    on_a_cluster = stage in RAY_STAGES and settings.on_a_cluster
    if not on_a_cluster and settings.machine:
        own = price_book(params, settings)
        return lambda: cluster.rates(own, lambda: [_as_node(settings)])
    if not on_a_cluster:
        price = price_book(params, settings).require("node", "local")
        return steady(_local("node", price))
    together = params.prices.cluster_usd_per_hour
    if together is not None:
        source = "prices.cluster_usd_per_hour"
        return steady(_local("cluster", Price(usd_per_hour=together, source=source)))
    book = price_book(params, settings)
    return lambda: cluster.rates(book, look)


def price_of(params: Params, settings: Settings, stage: str) -> Decimal:
    """USD per hour of all nodes that `stage` would run on now.

    Raises:
        BudgetRefused: the price is unknown.
        Unreachable: no Ray answers.
    """
    nodes = nodes_of(params, settings, stage)
    if stage not in RAY_STAGES or not settings.on_a_cluster:
        return total_usd(rate.usd_per_hour for rate in nodes().values())
    with ray_session(settings.ray_address):
        return total_usd(rate.usd_per_hour for rate in nodes().values())


def most_usd_per_hour(
    params: Params, settings: Settings, stage: str, book: PriceBook | None = None
) -> Decimal:
    """USD per hour that the nodes of `stage` can come to while it runs: what a budget counts with.

    Args:
        book: one that remembers what AWS did not answer; a fresh one by default.

    Raises: as `price_of`.
    """
    if stage not in RAY_STAGES or not settings.on_a_cluster:
        if not settings.machine:
            return price_of(params, settings, stage)
        own = book or price_book(params, settings)
        return cluster.most_usd_per_hour(own, lambda: [_as_node(settings)])
    if params.prices.cluster_usd_per_hour is not None:
        return price_of(params, settings, stage)
    with ray_session(settings.ray_address):
        return cluster.most_usd_per_hour(book or price_book(params, settings))


def price_in_words(params: Params, settings: Settings) -> str:
    """For the report, which may be written when the cluster is gone."""
    prices = params.prices
    if not settings.on_a_cluster and not settings.machine:
        price = price_book(params, settings).require("node", "local")
        return f"{format_usd(price.usd_per_hour)} per hour ({price.source})"
    if settings.on_a_cluster and prices.cluster_usd_per_hour is not None:
        usd = format_usd(prices.cluster_usd_per_hour)
        return f"{usd} per hour (prices.cluster_usd_per_hour)"
    return "each machine at its EC2 price of the time, as charged"


def limits_of(params: Params) -> Limits:
    """The configured budgets."""
    budget = params.budget
    return Limits(
        run_usd=budget.run_usd,
        customer_month_usd=budget.customer_month_usd,
        total_month_usd=budget.total_month_usd,
    )


def reserve_seconds(params: Params, downstream: DownstreamCost) -> float:
    """Kept back for what follows distillation: what it took before and a fifth more, and
    `budget.reserve_seconds` at least."""
    return max(params.budget.reserve_seconds, downstream.seconds * _LONGER)


def reserve_usd(
    params: Params,
    settings: Settings,
    downstream: DownstreamCost,
    *,
    nodes_usd_per_hour: Decimal,
    book: PriceBook | None = None,
) -> Decimal:
    """Reserved for what follows distillation: its time at `downstream_usd_per_hour`, and what of it
    is no time.

    Args:
        nodes_usd_per_hour: that the nodes of `distill` can come to together.
        book: as of `most_usd_per_hour`.

    Raises: as `price_of`.
    """
    usd_per_hour = downstream_usd_per_hour(params, settings, nodes_usd_per_hour, book)
    seconds = Decimal(str(reserve_seconds(params, downstream)))
    return seconds * per_second(usd_per_hour) + downstream.usd


def downstream_usd_per_hour(
    params: Params, settings: Settings, nodes_usd_per_hour: Decimal, book: PriceBook | None = None
) -> Decimal:
    """USD per hour while the stages after distillation run on this machine: of the nodes of
    `distill`, which wait, and of this machine where it is none of them.

    Raises: as `price_of`.
    """
    if not (settings.on_a_cluster and str(settings.ray_address).startswith("ray://")):
        return nodes_usd_per_hour
    return nodes_usd_per_hour + most_usd_per_hour(params, settings, "gate", book)


def downstream_of(workspace: Workspace) -> DownstreamCost:
    """What the customer's earlier runs have paid after distillation; nothing where no ledger is."""
    return (
        workspace.run_context.downstream() if workspace.run_context.downstream else DownstreamCost()
    )


def devices_usd(params: Params) -> Decimal:
    """The most that measuring all packages on a device that is paid for can come to."""
    return most_usd_per_package(params.device) * len(params.export.targets)


def spending_of(workspace: Workspace, settings: Settings, stage: str) -> Spending:
    """The run's budget, and its spend while `stage` runs: by the ledger, or where none is kept by
    the time from now on.

    Raises:
        BudgetRefused: the price is unknown.
    """
    limits = workspace.params.budget
    usd_per_hour = most_usd_per_hour(workspace.params, settings, stage)
    spent_usd, reservation = workspace.run_context.spent_usd, workspace.run_context.reservation
    device_usd = devices_usd(workspace.params)
    reserve = reserve_usd(
        workspace.params, settings, downstream_of(workspace), nodes_usd_per_hour=usd_per_hour
    )
    run_usd, by = limits.run_usd, f"budget.run_usd of {format_usd(limits.run_usd)}"
    if spent_usd is not None and reservation is not None:
        least_usd = spent_usd() + reserve + device_usd
        found = reservation.claim(least_usd, least_usd=least_usd)
        run_usd, by = max(found.usd, AMOUNT_QUANTUM), found.by
    if device_usd >= run_usd:
        raise BudgetRefused(
            f"measuring {len(workspace.params.export.targets)} packages on "
            f"{workspace.params.device.name} can "
            f"cost {format_usd(device_usd)} of the {format_usd(run_usd)} that the run may spend; "
            f"there is {by}: raise it, take fewer export.targets, or another gate.device"
        )
    budget = Budget(
        run_usd=run_usd - device_usd,
        warn_share=Decimal(str(limits.warn_share)),
        reserve_usd=reserve,
    )
    began = time.monotonic()

    def since() -> Decimal:
        return Decimal(time.monotonic() - began) * per_second(usd_per_hour)

    return Spending(
        budget=budget,
        usd_per_hour=usd_per_hour,
        spent_usd=spent_usd or since,
        reservation=reservation if spent_usd is not None else None,
        overhead_usd=device_usd,
    )


def _as_node(settings: Settings) -> dict[str, Any]:
    """This machine as Ray would tell of it."""
    return {"NodeID": "this machine", "Labels": settings.machine}


def _local(resource: str, price: Price) -> Rate:
    return Rate(
        resource=resource, market="local", usd_per_hour=price.usd_per_hour, source=price.source
    )
