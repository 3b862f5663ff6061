"""What a run costs per hour, what it reserves for its last stages, and what a stage may spend."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal

from turbo_vaed.cluster.nodes import most_usd_per_hour, price_book, price_of
from turbo_vaed.config.schema import Params
from turbo_vaed.costs import (
    Budget,
    Limits,
    Spending,
    format_usd,
    per_second,
)
from turbo_vaed.costs.money import AMOUNT_QUANTUM
from turbo_vaed.costs.run_context import DownstreamCost
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_RESERVE_FACTOR = 1.2
"""Of the time that the stages after distillation took before."""


def price_text(params: Params, settings: Settings) -> str:
    """A sentence for the report, which may be written when the cluster is gone."""
    prices = params.prices
    if not settings.on_a_cluster and not settings.machine:
        price = price_book(params, settings).require("node", "local")
        return f"{format_usd(price.usd_per_hour)} per hour ({price.source})"
    if settings.on_a_cluster and prices.cluster_usd_per_hour is not None:
        usd = format_usd(prices.cluster_usd_per_hour)
        return f"{usd} per hour (prices.cluster_usd_per_hour)"
    return "each machine at its EC2 price of the time, as charged"


@dataclass(frozen=True, kw_only=True)
class RunPrices:
    """What the machines of a run cost, and what is reserved for its last stages."""

    usd_per_hour: Decimal
    """Of all nodes of `distill` together, now."""
    most_usd_per_hour: Decimal
    """The most that they can cost while it runs."""
    reserve_usd: Decimal
    """Reserved for the stages after distillation, without devices."""
    devices_usd: Decimal
    """The most that measuring all packages on a paid device can cost."""


def run_prices(params: Params, settings: Settings, past: DownstreamCost) -> RunPrices:
    """The prices of a run that is about to begin.

    Args:
        past: what the stages after distillation cost in earlier runs.

    Raises:
        BudgetRefused: a price is unknown.
        Unreachable: no Ray answers.
    """
    price_of(params, settings, "gate")  # unknown, it refuses the run
    now = price_of(params, settings, "distill")
    most = most_usd_per_hour(params, settings, "distill")
    return RunPrices(
        usd_per_hour=now,
        most_usd_per_hour=most,
        reserve_usd=reserve_usd(params, past, nodes_usd_per_hour=most),
        devices_usd=devices_usd(params),
    )


def limits_of(params: Params) -> Limits:
    """The configured budgets."""
    budget = params.budget
    return Limits(
        run_usd=budget.run_usd,
        customer_month_usd=budget.customer_month_usd,
        total_month_usd=budget.total_month_usd,
    )


def reserve_seconds(params: Params, downstream: DownstreamCost) -> float:
    """Time reserved for the stages after distillation: a fifth more than they took before, and at
    least `budget.reserve_seconds`."""
    return max(params.budget.reserve_seconds, downstream.seconds * _RESERVE_FACTOR)


def reserve_usd(
    params: Params, downstream: DownstreamCost, *, nodes_usd_per_hour: Decimal
) -> Decimal:
    """USD reserved for the stages after distillation: their time, and disk, buckets and transfer.

    Args:
        nodes_usd_per_hour: the most that the nodes of `distill` can cost together. This machine is
            one of them; the others are idle by then.
    """
    seconds = Decimal(str(reserve_seconds(params, downstream)))
    return seconds * per_second(nodes_usd_per_hour) + downstream.usd


def downstream_of(workspace: Workspace) -> DownstreamCost:
    """What the customer's earlier runs paid after distillation; nothing without a ledger."""
    downstream = workspace.run_context.downstream
    return downstream() if downstream else DownstreamCost()


def devices_usd(params: Params) -> Decimal:
    """The most that measuring all packages on a paid device can cost."""
    return params.device.most_usd_per_package * len(params.export.targets)


def spending_of(workspace: Workspace, settings: Settings, stage: str) -> Spending:
    """The run's budget, and its spend while `stage` runs: by the ledger, or without one by the time
    from now on.

    Raises:
        BudgetRefused: the price is unknown.
    """
    limits = workspace.params.budget
    usd_per_hour = most_usd_per_hour(workspace.params, settings, stage)
    spent_usd, reservation = workspace.run_context.spent_usd, workspace.run_context.reservation
    device_usd = devices_usd(workspace.params)
    reserve = reserve_usd(
        workspace.params, downstream_of(workspace), nodes_usd_per_hour=usd_per_hour
    )
    run_usd, by = limits.run_usd, f"budget.run_usd of {format_usd(limits.run_usd)}"
    if spent_usd is not None and reservation is not None:
        least_usd = spent_usd() + reserve + device_usd
        found = reservation.claim(least_usd, least_usd=least_usd)
        run_usd, by = max(found.usd, AMOUNT_QUANTUM), found.by
    if device_usd >= run_usd:
        raise BudgetRefused(
            f"measuring {len(workspace.params.export.targets)} packages on "
            f"{workspace.params.device.name} can cost {format_usd(device_usd)}, and the run may "
            f"spend {format_usd(run_usd)}, by {by}: raise that, measure fewer export.targets, or "
            "choose another gate.device"
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
