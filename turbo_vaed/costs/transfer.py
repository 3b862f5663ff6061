"""What it costs to carry bytes out of AWS. Into it, and within a region, they go for nothing."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import PRICE_QUANTUM, quantise_usd, share
from turbo_vaed.errors import UserError

CHECKPOINTS = "checkpoints"
"""What is carried out of a bucket."""
UNIT = "GB"
"""1e9 bytes."""
SOURCE = "prices.transfer_out_usd_per_gb"


def resource(what: str) -> str:
    """As a charge names it."""
    return f"transfer ({what})"


def transfer_charge(
    *,
    run: str,
    customer: str,
    stage: str,
    what: str,
    size_bytes: int,
    began: datetime,
    ended: datetime,
    usd_per_gb: Decimal,
) -> Charge:
    """The charge for so many bytes out of AWS.

    Args:
        what: was carried, in words.

    Raises:
        UserError: a negative size or price.
    """
    if size_bytes < 0 or usd_per_gb < 0:
        raise UserError(
            f"transfer: {size_bytes} bytes at {usd_per_gb} USD per GB; neither may be negative"
        )
    quantity = share(Decimal(size_bytes), 1, 10**9, PRICE_QUANTUM)
    return Charge(
        run=run,
        customer=customer,
        stage=stage,
        resource=resource(what),
        market="on-demand",
        quantity=quantity,
        unit=UNIT,
        unit_price_usd=usd_per_gb,
        amount_usd=quantise_usd(quantity * usd_per_gb),
        started_at=began,
        ended_at=max(began, ended),
        useful="useful",
        price_source=SOURCE,
    )
