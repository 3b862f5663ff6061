"""What an hour of a machine costs, wherever it stands. An unknown price is unknown, never zero;
zero is a price."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from turbo_vaed.costs.aws_prices import Ec2Prices
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
    """The prices that are known: this machine's, as configured, and EC2's."""

    local_usd_per_hour: Decimal | None
    ec2: Ec2Prices | None = None

    def usd_per_hour(
        self,
        resource: str,
        market: Market,
        region: str = "",
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Decimal | None:
        """USD per hour of one node of `resource` on `market`; None where it is not known.

        Args:
            resource: an EC2 instance type, or any name of a local machine.
            region, zone: of EC2; spot prices need the zone.
            at: an aware time, now by default; the local price is the same at all times.

        Raises:
            UserError: as `Ec2Prices.quote`.
        """
        if market == "local":
            return self.local_usd_per_hour
        return (
            None if self.ec2 is None else self.ec2.usd_per_hour(resource, market, region, zone, at)
        )

    def require(
        self,
        resource: str,
        market: Market,
        region: str = "",
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Price:
        """The price, for a step that is about to cost money. The source of an outdated quote, and
        so of every charge by it, says that it is outdated.

        Raises:
            BudgetRefused: the price is unknown; the message names what to do.
            UserError: as `Ec2Prices.quote`.
        """
        if market != "local" and self.ec2 is not None:
            quote = self.ec2.require(resource, market, region, zone, at)
            source = "; ".join(part for part in (quote.source, quote.warning) if part)
            return Price(usd_per_hour=quote.usd_per_hour, source=source)
        usd_per_hour = self.usd_per_hour(resource, market)
        if usd_per_hour is None:
            todo = (
                f"{LOCAL_PRICE_KEY} is null; set it in finance.yaml to USD per hour (0 is a price)"
                if market == "local"
                else f"no price list for {market} machines is at hand; run on market local"
            )
            raise BudgetRefused(
                f"the price of {resource!r} on market {market!r} is unknown, and an unknown "
                f"price is not zero: {todo}"
            )
        return Price(usd_per_hour=usd_per_hour, source=LOCAL_PRICE_KEY)
