"""What an EC2 machine costs: spot history and on-demand list prices, cached on disk.

A quote is taken from AWS, cached with the time at which it was taken, and taken again when it is
older than a limit. Where AWS does not answer then, the old one is used and marked as
such. Where there is none the price is unknown, which is None and never zero.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from turbo_vaed.costs.money import parse_usd, plain
from turbo_vaed.costs.price_cache import CachedPrices, read, save
from turbo_vaed.errors import BudgetRefused, UserError

Ec2Market = Literal["spot", "on-demand"]
Client = Callable[[str, str], Any]
"""(service, region) -> a boto3 client."""

MOST_USD_PER_HOUR = Decimal(1000)
"""No machine costs as much; what does is taken for a mistake of the list."""
HISTORY = timedelta(days=7)
"""Of spot prices, before the moment of interest."""
AGAIN = timedelta(minutes=1)
"""Until a price that AWS did not give is requested again."""
_PRICING_REGION = "us-east-1"  # one of the few that answer for all
_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_ZONE = re.compile(r"[a-z]{2}(-[a-z]+)+-\d[a-z]|[a-z]{2}(-[a-z]+)+-\d-[a-z0-9-]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ec2Quote:
    """USD per hour of one machine, in force at a moment."""

    usd_per_hour: Decimal
    since: datetime
    """Since when AWS charges this price."""
    quoted_at: datetime
    """When it was read."""
    source: str
    warning: str = ""
    """Why it is older than it should be; stands in the report."""


def boto3_client(service: str, region: str) -> Any:
    """A client with AWS's own patience: throttled calls are tried five times."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=20
    )
    return boto3.client(service, region_name=region, config=config)


@dataclass(frozen=True, kw_only=True)
class Ec2Prices:
    """The prices of EC2 machines.

    Args:
        folder: of the cache, a file per machine; made when something is written.
        max_age: of a quote that is used without asking AWS again.
        client, now: for tests.
    """

    folder: Path
    max_age: timedelta
    client: Client = boto3_client
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _silent: dict[str, tuple[datetime, str]] = field(default_factory=dict, compare=False)
    """Why there is no price for a file's machine or from a whole service, and since when."""

    def usd_per_hour(
        self,
        instance_type: str,
        market: Ec2Market,
        region: str,
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Decimal | None:
        """The price in force at a moment, now by default; None where it is not known."""
        found = self.quote(instance_type, market, region, zone, at)
        return found.usd_per_hour if isinstance(found, Ec2Quote) else None

    def require(
        self,
        instance_type: str,
        market: Ec2Market,
        region: str,
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Ec2Quote:
        """The quote, for a step that is about to cost money.

        Raises:
            BudgetRefused: there is none; the message says why and what to do.
            UserError: no such machine can exist.
        """
        found = self.quote(instance_type, market, region, zone, at)
        if isinstance(found, Ec2Quote):
            return found
        raise BudgetRefused(
            f"the {market} price of {instance_type} in {zone or region} is unknown, and an unknown "
            f"price is not zero: {found}; give AWS credentials that may call "
            + ("ec2:DescribeSpotPriceHistory" if market == "spot" else "pricing:GetProducts")
            + ", choose another type or zone, or set the price in finance.yaml"
        )

    def quote(
        self,
        instance_type: str,
        market: Ec2Market,
        region: str,
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Ec2Quote | str:
        """The quote in force at a moment, or why there is none.

        Raises:
            UserError: no such type, a name that can be none, a spot price without its zone, a
                time without a time zone.
        """
        _check(instance_type, market, region, zone, at)
        moment, now = at or self.now(), self.now()
        path = self.folder / f"{market}_{zone or region}_{instance_type}.json"
        cached = read(path)
        is_old = cached is None or now - cached.quoted_at > self.max_age or cached.quoted_at > now
        wants_more = (
            cached is None
            or moment > cached.quoted_at
            or moment < cached.begins
            or cached.quoted_at > now
        )
        warning = ""
        if is_old and wants_more:
            try:
                self._check_silent(now, path.name, _service(market, region))
                if market == "spot":
                    assert zone is not None, "checked"
                    points = self._spot(instance_type, region, zone, min(moment, now))
                else:
                    points = self._on_demand(instance_type, region)
                fresh = CachedPrices(quoted_at=now, points=tuple(points))
            except _NoAnswer as error:
                if not error.is_repeated:
                    about = _service(market, region) if error.is_of_service else path.name
                    self._silent[about] = now, str(error)
                if cached is None:
                    return str(error)
                warning = cached.warning(str(error))
                _log.warning("%s in %s: %s", instance_type, zone or region, warning)
            else:
                if cached is not None and cached.points and not fresh.points:
                    self._silent[path.name] = now, "it gives none for this machine any more"
                    warning = cached.warning(self._silent[path.name][1])
                else:
                    cached = fresh if cached is None else cached.with_newer(fresh)
                    save(path, cached)
        assert cached is not None
        point = cached.at(moment)
        if point is None:
            return f"AWS gives no price at {moment:%Y-%m-%d %H:%M} UTC"
        since, usd = point
        what = "EC2 spot price history" if market == "spot" else "AWS price list"
        return Ec2Quote(
            usd_per_hour=usd,
            since=since,
            quoted_at=cached.quoted_at,
            source=f"{what}, {instance_type} in {zone or region}, "
            f"read {cached.quoted_at:%Y-%m-%dT%H:%MZ}",
            warning=warning,
        )

    def _check_silent(self, now: datetime, *about: str) -> None:
        """Do not ask again so soon: one answer that does not come takes half a minute.

        Raises:
            _NoAnswer: the one that was got before.
        """
        for at, why in filter(None, map(self._silent.get, about)):
            if now - at < AGAIN:
                raise _NoAnswer(why, is_repeated=True)

    def _spot(
        self, instance_type: str, region: str, zone: str, moment: datetime
    ) -> list[tuple[datetime, Decimal]]:
        """Price changes of the last days, oldest first; none where the zone has no such machine."""
        with _asking(instance_type, region):
            pages = (
                self.client("ec2", region)
                .get_paginator("describe_spot_price_history")
                .paginate(
                    InstanceTypes=[instance_type],
                    ProductDescriptions=["Linux/UNIX"],
                    AvailabilityZone=zone,
                    StartTime=moment - HISTORY,
                    EndTime=self.now(),
                )
            )
            rows = [row for page in pages for row in page["SpotPriceHistory"]]
        return sorted(
            (row["Timestamp"].astimezone(UTC), _sane(row["SpotPrice"], instance_type))
            for row in rows
        )

    def _on_demand(self, instance_type: str, region: str) -> list[tuple[datetime, Decimal]]:
        """The list price, as one change at the day from which it is valid."""
        filters = {
            "instanceType": instance_type,
            "regionCode": region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        with _asking(instance_type, region):
            pages = (
                self.client("pricing", _PRICING_REGION)
                .get_paginator("get_products")
                .paginate(
                    ServiceCode="AmazonEC2",
                    Filters=[
                        {"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in filters.items()
                    ],
                )
            )
            products = [json.loads(text) for page in pages for text in page["PriceList"]]
        try:
            found = sorted({p for product in products for p in _listed(product, instance_type)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _NoAnswer(f"the AWS price list cannot be read: {error!r}") from error
        if len({usd for _, usd in found}) > 1:
            raise _NoAnswer(
                f"the AWS price list has {len(found)} prices for it, "
                f"{plain(found[0][1])} to {plain(found[-1][1])} USD"
            )
        return found


def is_instance_type(resource: str) -> bool:
    """Whether a charge's resource looks like an EC2 type: `g5.xlarge`, `u-6tb1.metal`."""
    return _TYPE.fullmatch(resource) is not None and any(
        letter.isdigit() for letter in resource.partition(".")[0]
    )


def cached_on_demand(folder: Path, resource: str) -> Decimal | None:
    """USD per hour of a machine on demand, by the price list as last read; AWS is not called.

    None where the resource is no EC2 type, no quote of it is in `folder`, or regions differ: a
    charge does not say in which one it arose.
    """
    if not is_instance_type(resource):
        return None
    cached = [read(path) for path in folder.glob(f"on-demand_*_{resource}.json")]
    prices = {one.points[-1][1] for one in cached if one is not None and one.points}
    return prices.pop() if len(prices) == 1 else None


class _NoAnswer(Exception):
    """AWS gave no price; the message says why."""

    def __init__(self, why: str, *, is_of_service: bool = False, is_repeated: bool = False) -> None:
        super().__init__(why)
        self.is_of_service, self.is_repeated = is_of_service, is_repeated


def _service(market: str, region: str) -> str:
    """The service that has the prices of a market: for spot, one per region."""
    return f"ec2 in {region}" if market == "spot" else "pricing"


@contextmanager
def _asking(instance_type: str, region: str) -> Iterator[None]:
    """AWS's own errors as ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code.startswith("InvalidInstanceType") or (
            code == "InvalidParameterValue" and instance_type in str(error)
        ):
            raise UserError(f"no EC2 machine is called {instance_type!r} in {region}") from error
        raise _NoAnswer(f"AWS says {code}: {error}") from error
    except BotoCoreError as error:
        raise _NoAnswer(f"AWS does not answer: {error}", is_of_service=True) from error


def _check(
    instance_type: str, market: str, region: str, zone: str | None, at: datetime | None
) -> None:
    for what, value, form, example in (
        ("an instance type", instance_type, _TYPE, "g5.xlarge"),
        ("a region", region, _REGION, "eu-central-1"),
        ("a zone", zone, _ZONE, "eu-central-1a"),
    ):
        if value is not None and not form.fullmatch(value):
            raise UserError(f"{value!r} is not the name of {what}; expected one such as {example}")
    if market not in ("spot", "on-demand"):
        raise UserError(f"market {market!r}; allowed: spot, on-demand")
    if zone is not None and not zone.startswith(region):
        raise UserError(f"zone {zone} does not lie in region {region}")
    if market == "spot" and zone is None:
        raise UserError(f"spot prices differ by zone: name one of {region}, such as {region}a")
    if at is not None and at.utcoffset() is None:
        raise UserError(f"price at {at}: the time has no time zone; expected UTC")


def _sane(text: str, instance_type: str) -> Decimal:
    """A price from AWS.

    Raises:
        _NoAnswer: it can be none.
    """
    try:
        usd = parse_usd(text)
    except UserError as error:
        raise _NoAnswer(f"AWS gave a price of {text!r} for {instance_type}") from error
    if not 0 < usd < MOST_USD_PER_HOUR:
        raise _NoAnswer(
            f"AWS gave a price of {text} USD per hour for {instance_type}; expected above 0 and "
            f"below {MOST_USD_PER_HOUR}"
        )
    return usd


def _listed(product: dict[str, Any], instance_type: str) -> Iterable[tuple[datetime, Decimal]]:
    """The hourly on-demand prices of a product of the list."""
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        since = datetime.fromisoformat(term["effectiveDate"].replace("Z", "+00:00"))
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] != "Hrs":
                continue
            prices = dimension["pricePerUnit"]
            if "USD" not in prices:
                raise _NoAnswer(f"the AWS price list is in {', '.join(prices)}; expected USD")
            yield since.astimezone(UTC), _sane(prices["USD"], instance_type)
