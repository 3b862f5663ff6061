"""EC2 prices: pages, times, zones, the cache, and everything that AWS may answer instead.

botocore's Stubber answers where moto cannot (its spot prices never change, it has no Pricing).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from botocore.stub import ANY, Stubber

from turbo_vaed.costs.aws_prices import (
    Ec2Prices,
    cached_on_demand,
    is_instance_type,
)
from turbo_vaed.costs.price_source import old_price_in
from turbo_vaed.errors import BudgetRefused, UserError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ZONE = ("g5.xlarge", "spot", "eu-central-1", "eu-central-1a")
LIST = ("g5.xlarge", "on-demand", "eu-central-1")


def page(*changes: tuple[int, str], token: str = "") -> dict[str, Any]:
    """A page of spot history: hours before noon, and prices."""
    rows = [
        {
            "AvailabilityZone": "eu-central-1a",
            "InstanceType": "g5.xlarge",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": price,
            "Timestamp": NOON - timedelta(hours=hours),
        }
        for hours, price in changes
    ]
    return {"SpotPriceHistory": rows, "NextToken": token}


def product(**price: str) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": price or {"USD": "1.2580000000"}}
    term = {"effectiveDate": "2026-11-01T00:00:00Z", "priceDimensions": {"a.b.c": dimension}}
    return json.dumps({"terms": {"OnDemand": {"a.b": term}}})


class Aws:
    """Clients whose answers are given; calls beyond them fail."""

    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}
        self.stubs: dict[str, Stubber] = {}
        for service in ("ec2", "pricing"):
            self.clients[service] = boto3.client(
                service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
            )
            self.stubs[service] = Stubber(self.clients[service])
            self.stubs[service].activate()

    def spot(self, *pages: dict[str, Any]) -> None:
        for one in pages:
            self.stubs["ec2"].add_response("describe_spot_price_history", one)

    def listed(self, *products: str) -> None:
        answer = {"FormatVersion": "aws_v1", "PriceList": list(products)}
        self.stubs["pricing"].add_response("get_products", answer)

    def fails(self, code: str, message: str = "no") -> None:
        self.stubs["ec2"].add_client_error("describe_spot_price_history", code, message)

    def done(self) -> None:
        for stub in self.stubs.values():
            stub.assert_no_pending_responses()


@pytest.fixture
def aws() -> Iterator[Aws]:
    aws = Aws()
    yield aws
    aws.done()


@contextmanager
def nobody_asks() -> Iterator[Callable[[str, str], Any]]:
    def client(service: str, region: str) -> Any:
        raise AssertionError(f"{service} was asked")

    yield client


def prices(aws: Aws | Callable[[str, str], Any], folder: Path, now: datetime = NOON) -> Ec2Prices:
    client = (lambda service, _region: aws.clients[service]) if isinstance(aws, Aws) else aws
    return Ec2Prices(folder=folder, max_age=timedelta(minutes=10), client=client, now=lambda: now)


def test_a_spot_price_is_the_one_in_force_over_all_pages(aws: Aws, tmp_path: Path) -> None:
    aws.spot(page((1, "0.45"), (5, "0.40"), token="more"), page((30, "0.35")))
    book = prices(aws, tmp_path)
    assert book.usd_per_hour(*ZONE) == Decimal("0.45")
    # From here on the cache knows, an earlier moment too.
    for hours, usd in ((1, "0.45"), (2, "0.40"), (5, "0.40"), (6, "0.35"), (30, "0.35")):
        assert book.usd_per_hour(*ZONE, NOON - timedelta(hours=hours)) == Decimal(usd), hours


def test_spot_prices_are_asked_for_linux_in_the_machines_zone(aws: Aws, tmp_path: Path) -> None:
    aws.stubs["ec2"].add_response(
        "describe_spot_price_history",
        page((5, "0.40")),
        {
            "InstanceTypes": ["g5.xlarge"],
            "ProductDescriptions": ["Linux/UNIX"],
            "AvailabilityZone": "eu-central-1a",
            "StartTime": ANY,
            "EndTime": NOON,
        },
    )
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) == Decimal("0.40")


def test_list_prices_are_asked_for_shared_linux_machines_without_software(
    aws: Aws, tmp_path: Path
) -> None:
    """Every filter: without one of them other products' prices come along."""
    fields = {
        "instanceType": "g5.xlarge",
        "regionCode": "eu-central-1",
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()]
    aws.stubs["pricing"].add_response(
        "get_products",
        {"FormatVersion": "aws_v1", "PriceList": []},
        {"ServiceCode": "AmazonEC2", "Filters": filters},
    )
    assert prices(aws, tmp_path).usd_per_hour(*LIST) is None


def test_an_older_moment_than_the_history_is_unknown(aws: Aws, tmp_path: Path) -> None:
    aws.spot(page((5, "0.40")))
    book = prices(aws, tmp_path)
    assert book.usd_per_hour(*ZONE, NOON - timedelta(hours=6)) is None


def test_a_fresh_quote_is_not_asked_for_again_and_an_old_one_is(aws: Aws, tmp_path: Path) -> None:
    aws.spot(page((5, "0.40")))
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) == Decimal("0.40")
    with nobody_asks() as client:
        soon = prices(client, tmp_path, NOON + timedelta(minutes=10))
        assert soon.usd_per_hour(*ZONE) == Decimal("0.40")
    aws.spot(page((-1, "0.70")))
    later = prices(aws, tmp_path, NOON + timedelta(hours=2))
    assert later.usd_per_hour(*ZONE) == Decimal("0.70")
    # A price that AWS no longer returns stays known.
    assert later.usd_per_hour(*ZONE, NOON) == Decimal("0.40")


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ExpiredToken", "RequestLimitExceeded", "UnauthorizedOperation"])
def test_an_old_quote_is_used_and_marked_where_aws_refuses(
    aws: Aws, tmp_path: Path, code: str
) -> None:
    aws.spot(page((5, "0.40")))
    prices(aws, tmp_path).require(*ZONE)
    aws.fails(code)
    found = prices(aws, tmp_path, NOON + timedelta(hours=2)).require(*ZONE)
    assert found.usd_per_hour == Decimal("0.40")
    assert found.quoted_at == NOON
    assert "2026-11-24 12:00" in found.warning and code in found.warning


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="http://x"), NoCredentialsError()]
)
def test_without_any_quote_a_paid_step_is_refused(tmp_path: Path, error: Exception) -> None:
    def client(service: str, region: str) -> Any:
        raise error

    book = prices(client, tmp_path)
    assert book.usd_per_hour(*ZONE) is None
    with pytest.raises(BudgetRefused, match=r"g5\.xlarge in eu-central-1a.*DescribeSpotPrice"):
        book.require(*ZONE)
    assert not list(tmp_path.iterdir())


def test_an_unknown_instance_type_is_refused(aws: Aws, tmp_path: Path) -> None:
    aws.fails("InvalidParameterValue", "Invalid instance type g5.xlarge")
    with pytest.raises(UserError, match=r"no EC2 machine is called 'g5\.xlarge'"):
        prices(aws, tmp_path).require(*ZONE)


@pytest.mark.parametrize("price", ["0", "-0.4", "NaN", "Infinity", "1e9", "free"])
def test_an_absurd_price_is_taken_for_none(aws: Aws, tmp_path: Path, price: str) -> None:
    aws.spot(page((5, price)))
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) is None


def test_a_zone_without_such_machines_has_no_price(aws: Aws, tmp_path: Path) -> None:
    aws.spot(page())
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) is None


def test_the_list_price(aws: Aws, tmp_path: Path) -> None:
    aws.listed(product(), product())
    found = prices(aws, tmp_path).require(*LIST)
    assert found.usd_per_hour == Decimal("1.258")
    assert "AWS price list" in found.source and "2026-11-24T12:00" in found.source


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ([product(CNY="9.1")], "CNY"),
        ([product(), product(USD="2.0")], "2 prices"),
        ([], "no price"),
    ],
)
def test_a_price_list_that_cannot_be_used_is_refused(
    aws: Aws, tmp_path: Path, products: list[str], message: str
) -> None:
    aws.listed(*products)
    with pytest.raises(BudgetRefused, match=message):
        prices(aws, tmp_path).require(*LIST)


def test_a_quote_from_the_future_is_old(aws: Aws, tmp_path: Path) -> None:
    """The clock went back: a fresh quote cannot be distinguished from a stale one."""
    aws.spot(page((5, "0.40")))
    prices(aws, tmp_path, NOON + timedelta(days=1)).require(*ZONE)
    aws.spot(page((2, "0.50")))
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) == Decimal("0.50")


def test_a_broken_cache_is_read_from_aws_again(aws: Aws, tmp_path: Path) -> None:
    aws.spot(page((5, "0.40")), page((5, "0.40")))
    prices(aws, tmp_path).require(*ZONE)
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:30])
    assert prices(aws, tmp_path).usd_per_hour(*ZONE) == Decimal("0.40")


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (("g5 xlarge", "spot", "eu-central-1", "eu-central-1a"), "instance type"),
        (("../g5.xlarge", "spot", "eu-central-1", "eu-central-1a"), "instance type"),
        (("g5.xlarge", "spot", "eu-central", "eu-central-1a"), "region"),
        (("g5.xlarge", "spot", "eu-central-1", "us-east-1a"), "does not lie"),
        (("g5.xlarge", "spot", "eu-central-1", None), "name one"),
        (("g5.xlarge", "cheap", "eu-central-1", "eu-central-1a"), "spot, on-demand"),
    ],
)
def test_an_invalid_machine_is_refused_without_asking_aws(
    tmp_path: Path, requested: tuple[Any, ...], message: str
) -> None:
    with nobody_asks() as client, pytest.raises(UserError, match=message):
        prices(client, tmp_path).quote(*requested)


def test_a_moment_without_a_time_zone_is_refused(tmp_path: Path) -> None:
    with nobody_asks() as client, pytest.raises(UserError, match="time zone"):
        prices(client, tmp_path).quote(*ZONE, datetime(2026, 11, 24, 12))


@pytest.mark.parametrize(
    ("resource", "expected"),
    [("g5.xlarge", True), ("u-6tb1.metal", True), ("trn1.32xlarge", True), ("node", False),
     ("my.laptop", False), ("", False), ("*", False), ("../g5.xlarge", False)],
)  # fmt: skip
def test_instance_types_of_ec2_are_recognised(resource: str, expected: bool) -> None:
    assert is_instance_type(resource) is expected


def test_the_cached_list_price_is_found_without_a_region_and_without_aws(
    aws: Aws, tmp_path: Path
) -> None:
    aws.listed(product())
    quoted = prices(aws, tmp_path).usd_per_hour(*LIST)
    assert cached_on_demand(tmp_path, "g5.xlarge") == quoted == Decimal("1.258")
    assert cached_on_demand(tmp_path, "g5.2xlarge") is None
    assert cached_on_demand(tmp_path, "node") is None
    assert cached_on_demand(tmp_path / "none", "g5.xlarge") is None


def test_a_cached_price_that_differs_between_regions_is_unknown(tmp_path: Path) -> None:
    def keep(region: str, text: str) -> None:
        (tmp_path / f"on-demand_{region}_g5.xlarge.json").write_text(text)

    whole = json.dumps({"quoted_at": NOON.isoformat(), "points": [[NOON.isoformat(), "1.2"]]})
    for region in ("eu-central-1", "eu-west-1"):
        keep(region, whole)
    assert cached_on_demand(tmp_path, "g5.xlarge") == Decimal("1.2")
    keep("eu-north-1", "{")
    assert cached_on_demand(tmp_path, "g5.xlarge") == Decimal("1.2")
    keep("us-east-1", whole.replace("1.2", "1.0"))
    assert cached_on_demand(tmp_path, "g5.xlarge") is None


def test_a_service_that_does_not_answer_is_not_asked_again_for_a_minute(tmp_path: Path) -> None:
    """A minute later it is, and so is another region's at once."""
    requested: list[tuple[str, str]] = []

    def client(service: str, region: str) -> Any:
        requested.append((service, region))
        raise EndpointConnectionError(endpoint_url="http://x")

    book = prices(client, tmp_path)
    for zone in "abc":
        found = book.quote("g5.xlarge", "spot", "eu-central-1", f"eu-central-1{zone}")
        assert "does not answer" in str(found)
    book.quote("g6.xlarge", "spot", "eu-west-1", "eu-west-1a")
    assert requested == [("ec2", "eu-central-1"), ("ec2", "eu-west-1")]
    later = replace(book, now=lambda: NOON + timedelta(minutes=2))
    later.quote("g5.xlarge", "spot", "eu-central-1", "eu-central-1a")
    assert len(requested) == 3


def test_a_machine_that_is_no_longer_quoted_keeps_its_old_price(aws: Aws, tmp_path: Path) -> None:
    """With a warning, for as long as AWS quotes no other."""
    aws.spot(page((5, "0.40")))
    prices(aws, tmp_path).require(*ZONE)
    aws.spot(page())
    book = prices(aws, tmp_path, NOON + timedelta(days=30))
    for _ in range(2):
        found = book.require(*ZONE)
        assert found.usd_per_hour == Decimal("0.40")
        assert old_price_in(found.warning) and "gives none" in found.warning
