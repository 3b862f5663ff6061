"""What an hour of a resource costs. An unknown price is unknown, never zero; zero is a price."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from turbo_vaed.errors import BudgetRefused

Market = Literal["spot", "on-demand", "local"]
MARKETS: tuple[Market, ...] = ("spot", "on-demand", "local")

LOCAL_PRICE_KEY = "prices.local_usd_per_hour"


@dataclass(frozen=True, kw_only=True)
class Price:
    """USD per hour of one node, and where that was read."""

    usd_per_hour: Decimal
    source: str


@dataclass(frozen=True, kw_only=True)
class PriceBook:
    """The prices that are known: this machine's, from params.yaml."""

    local_usd_per_hour: Decimal | None

    def usd_per_hour(self, resource: str, market: Market) -> Decimal | None:
        """USD per hour of one node of `resource` on `market`; None where it is not known."""
        return self.local_usd_per_hour if market == "local" else None

    def require(self, resource: str, market: Market) -> Price:
        """The price, for a step that is about to cost money.

        Raises:
            BudgetRefused: the price is unknown; the message names the key to set.
        """
        usd_per_hour = self.usd_per_hour(resource, market)
        if usd_per_hour is None:
            todo = (
                f"{LOCAL_PRICE_KEY} is null in params.yaml; set it to USD per hour (0 is a price)"
                if market == "local"
                else f"no price list for {market} machines is configured; run on market local"
            )
            raise BudgetRefused(
                f"the price of {resource!r} on market {market!r} is unknown, and an unknown "
                f"price is not zero: {todo}"
            )
        return Price(usd_per_hour=usd_per_hour, source=f"params.yaml {LOCAL_PRICE_KEY}")
