"""What the nodes of a stage cost: this machine, or the Ray cluster that the environment names;
and what a stage may spend."""

from __future__ import annotations

import time
from decimal import Decimal

from turbo_vaed.costs import Budget, Price, PriceBook, Spending, per_second
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.params import Params
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings

RAY_STAGES = ("encode", "distill")


def price_of(params: Params, settings: Settings, stage: str) -> Price:
    """USD per hour of all nodes that `stage` runs on.

    Raises:
        BudgetRefused: the price is unknown.
    """
    if stage in RAY_STAGES and settings.on_a_cluster:
        known = params.prices.cluster_usd_per_hour
        if known is None:
            raise BudgetRefused(
                f"{stage} would run on the Ray cluster at {settings.ray_address}, whose price is "
                "unknown; set prices.cluster_usd_per_hour in params.yaml to USD per hour of all "
                "its nodes together, or unset RAY_ADDRESS"
            )
        return Price(usd_per_hour=known, source="params.yaml prices.cluster_usd_per_hour")
    book = PriceBook(local_usd_per_hour=params.prices.local_usd_per_hour)
    return book.require("node", "local")


def spending_of(poc: Poc, settings: Settings, stage: str) -> Spending:
    """The run's budget, and its spend while `stage` runs: by the ledger, or where none is kept by
    the time from now on.

    Raises:
        BudgetRefused: the price is unknown.
    """
    limits = poc.params.budget
    usd_per_hour = price_of(poc.params, settings, stage).usd_per_hour
    budget = Budget.plan(
        run_usd=limits.run_usd,
        warn_share=limits.warn_share,
        reserve_seconds=limits.reserve_seconds,
        usd_per_hour=usd_per_hour,
    )
    began = time.monotonic()

    def since() -> Decimal:
        return Decimal(time.monotonic() - began) * per_second(usd_per_hour)

    return Spending(
        budget=budget, usd_per_hour=usd_per_hour, spent_usd=poc.tracker.spent_usd or since
    )
