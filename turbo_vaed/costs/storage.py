"""What it costs to keep bytes for a while."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import PRICE_QUANTUM, quantise_usd
from turbo_vaed.costs.prices import Market
from turbo_vaed.errors import UserError

UNIT = "GB-month"
"""1e9 bytes for 30 days."""
_MONTH = timedelta(days=30) // timedelta(microseconds=1)


def storage_charge(
    *,
    run: str,
    customer: str,
    stage: str,
    resource: str,
    size_bytes: int,
    since: datetime,
    until: datetime,
    usd_per_gb_month: Decimal,
    price_source: str,
    market: Market = "local",
) -> Charge:
    """The charge for keeping so many bytes from `since` to `until`.

    Raises:
        UserError: a negative size or price, or `until` before `since`.
    """
    if size_bytes < 0 or usd_per_gb_month < 0 or until < since:
        raise UserError(
            f"storage: {size_bytes} bytes at {usd_per_gb_month} USD from {since} to {until}; "
            "expected none of them negative"
        )
    microseconds = (until - since) // timedelta(microseconds=1)
    # Exact up to the one division: 38 digits hold bytes times microseconds of any disk.
    quantity = (Decimal(size_bytes * microseconds) / Decimal(10**9 * _MONTH)).quantize(
        PRICE_QUANTUM, rounding=ROUND_HALF_EVEN
    )
    return Charge(
        run=run,
        customer=customer,
        stage=stage,
        resource=resource,
        market=market,
        quantity=quantity,
        unit=UNIT,
        unit_price_usd=usd_per_gb_month,
        amount_usd=quantise_usd(quantity * usd_per_gb_month),
        started_at=since,
        ended_at=until,
        useful="useful",
        price_source=price_source,
    )
