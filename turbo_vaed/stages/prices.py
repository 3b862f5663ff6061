"""What the nodes of a stage cost: this machine, or the Ray cluster that the environment names."""

from __future__ import annotations

from turbo_vaed.costs import Price, PriceBook
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.params import Params
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
