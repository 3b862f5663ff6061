"""`budget` and `prices` of finance.yaml."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from turbo_vaed.config.types import STRICT, Hours, Money, PositiveMoney, Price, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetParams:
    run_usd: PositiveMoney = Decimal("95")
    customer_month_usd: PositiveMoney | None = None
    """Of all runs of the customer that start charges in a month (UTC); None for no such limit."""
    total_month_usd: PositiveMoney | None = None
    """Of all customers together."""
    warn_share: Share = 0.8
    reserve_seconds: Annotated[float, Field(ge=0, le=30 * 86_400)] = 300.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CandidateParams:
    """An EC2 machine that a run could take."""

    instance_type: str
    region: str
    zones: tuple[str, ...]
    """Availability zones between which spot prices are compared."""
    speed: Annotated[float, Field(gt=0, le=1e6)]
    """Times the steps per second of the machine of this checkout."""
    interruptions_per_hour: Annotated[float, Field(ge=0, le=60)]
    """Of a spot machine."""
    source: str
    """Where the last two come from."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriceParams:
    local_usd_per_hour: Price | None = None
    """USD per hour of this machine; null is an unknown price, which stops a run."""
    cluster_usd_per_hour: Annotated[Money, Field(ge=0, lt=100_000)] | None = None
    """USD per hour of all nodes of the Ray cluster in RAY_ADDRESS together; null: each node by its
    labels, at its EC2 price."""
    storage_usd_per_gb_month: Price = Decimal("0.02")
    """USD for 1e9 bytes of disk for 30 days: of clips, latents, targets and checkpoints."""
    bucket_usd_per_gb_month: Price = Decimal("0.0245")
    """USD for 1e9 bytes of a bucket for 30 days: of checkpoints, and of TURBO_VAED_ARRAYS."""
    volume_usd_per_gb_month: Price = Decimal("0.0952")
    """USD for 2**30 bytes of a machine's volume for 30 days, as EBS counts them."""
    transfer_out_usd_per_gb: Price = Decimal("0.09")
    """USD for 1e9 bytes out of AWS, into which they go for nothing."""
    quote_hours: Hours = 1.0
    """An EC2 price that was read longer ago is read again."""
    candidates: tuple[CandidateParams, ...] = ()
    """Compared by `turbo-vaed cost quote`."""
