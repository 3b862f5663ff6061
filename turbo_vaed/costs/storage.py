"""What it costs to keep bytes for a while."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import PRICE_QUANTUM, quantise_usd, share
from turbo_vaed.costs.prices import Market
from turbo_vaed.errors import UserError

BUCKET = "bucket (checkpoints)"
"""What a charge for checkpoints in a bucket names."""
ARRAYS = "bucket (arrays)"
"""Likewise, for what a cluster's workers read and write there."""
UNIT = "GB-month"
"""1e9 bytes for 30 days; of a machine's volume 2**30, as EBS counts them."""
_MONTH = timedelta(days=30) // timedelta(microseconds=1)


def storage_charge(
    *,
    run: str,
    customer: str,
    stage: str,
    resource: str,
    byte_microseconds: int,
    since: datetime,
    until: datetime,
    usd_per_gb_month: Decimal,
    price_source: str,
    market: Market = "local",
) -> Charge:
    """The charge for keeping bytes within a span.

    Args:
        byte_microseconds: the sum of each file's bytes times how long it was kept.
        since, until: from the first to the last moment.

    Raises:
        UserError: a negative size or price, or `until` before `since`.
    """
    if byte_microseconds < 0 or usd_per_gb_month < 0 or until < since:
        raise UserError(
            f"storage: {byte_microseconds} byte-microseconds at {usd_per_gb_month} USD from "
            f"{since} to {until}; expected none of them negative"
        )
    quantity = share(Decimal(byte_microseconds), 1, 10**9 * _MONTH, PRICE_QUANTUM)
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
