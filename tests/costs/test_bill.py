"""The bill: requests to Cost Explorer, and everything that it may answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    UnauthorizedSSOTokenError,
)

from tests.costs.bills import AFTER, NOVEMBER, Explorer, billed, group, page
from turbo_vaed.costs.bill import Bill, month_bill
from turbo_vaed.errors import Fault, Unreachable, UserError


@pytest.fixture
def explorer() -> Iterator[Explorer]:
    explorer = Explorer()
    yield explorer
    explorer.stub.assert_no_pending_responses()


def ask(explorer: Explorer, now: datetime = AFTER) -> Bill:
    return month_bill(NOVEMBER, client=explorer.client, now=lambda: now)


def test_a_bill_of_two_pages(explorer: Explorer) -> None:
    explorer.answers(
        page([group("12.3456789012"), group("1E-7", "acme", "acme-2")], token="more"),
        page([group("3", "zeta", "zeta-1")]),
    )
    found = ask(explorer)
    assert found.rows == (
        billed("12.3456789012"),
        billed("1E-7", run="acme-2"),
        billed("3", "zeta", "zeta-1"),
    )
    assert (found.requests, found.is_partial, found.is_final) == (2, False, True)


def test_costs_without_a_run_tag_are_a_row(explorer: Explorer) -> None:
    explorer.answers(page([group("1", "", ""), group("2", "acme", "")]))
    assert ask(explorer).rows == (billed("1", None, None), billed("2", "acme", None))


@pytest.mark.parametrize(
    "keys",
    [
        ["turbo-vaed:customer$acme"],
        ["turbo-vaed:customer", "turbo-vaed:run$r"],
        ["turbo-vaed:run$r", "turbo-vaed:customer$acme"],
        ["turbo-vaed:customer$acme", "turbo-vaed:run$r", "turbo-vaed:stage$clip"],
        [],
    ],
)
def test_the_amount_of_an_unreadable_group_is_counted(explorer: Explorer, keys: list[str]) -> None:
    explorer.answers(page([{**group("7"), "Keys": keys}, group("1")]))
    odd, fine = ask(explorer).rows
    assert (odd.customer, odd.run, odd.usd) == (None, None, 7)
    assert f"{keys} names no customer and run" in odd.problem
    assert fine == billed("1")


def test_a_negative_amount_is_marked(explorer: Explorer) -> None:
    explorer.answers(page([group("-2.5")]))
    (row,) = ask(explorer).rows
    assert row.usd == Decimal("-2.5")
    assert "negative, though credits and refunds are left out" in row.problem


@pytest.mark.parametrize(
    ("odd", "refusal"),
    [
        (group("1", unit="CNY"), "1 CNY.*expected USD"),
        (group("NaN"), "amount of 'NaN'"),
        (group("Infinity"), "amount of 'Infinity'"),
        (group("much"), "amount of 'much'"),
        (group("1e12"), "at most 12 digits"),
        (group("1e-41"), "40 decimals"),
        ({**group("1"), "Metrics": {}}, "None None"),
        ({**group("1"), "Metrics": {"UnblendedCost": {"Unit": "USD"}}}, "amount of None"),
    ],
)
def test_an_invalid_amount_in_the_bill_is_a_fault(
    explorer: Explorer, odd: Any, refusal: str
) -> None:
    explorer.answers(page([group("1", "fine", "fine-1"), odd]))
    with pytest.raises(Fault, match=refusal):
        ask(explorer)


@pytest.mark.parametrize(
    ("pages", "refusal"),
    [
        ([page([group("1"), group("1")])], "twice"),
        ([page([group("1")], token="a"), page([group("1")])], "twice"),
        ([page([], token="a"), page([], token="a")], "again and again"),
        (
            [page([], TimePeriod={"Start": "2026-10-01", "End": "2026-11-01"})],
            "2026-10-01 for 2026-",
        ),
        ([page([], Total={"UnblendedCost": {"Amount": "5", "Unit": "USD"}})], "without groups"),
        ([{"ResultsByTime": []}], "returned nothing"),
    ],
)
def test_an_inconsistent_answer_is_a_fault(
    explorer: Explorer, pages: list[Any], refusal: str
) -> None:
    explorer.answers(*pages)
    with pytest.raises(Fault, match=refusal):
        ask(explorer)


def test_a_month_without_costs(explorer: Explorer) -> None:
    explorer.answers(page([], Total={"UnblendedCost": {"Amount": "0", "Unit": "USD"}}))
    assert ask(explorer).rows == ()


def test_a_month_that_has_not_begun_is_not_asked_for(explorer: Explorer) -> None:
    with pytest.raises(UserError, match=r"2026-11 has not begun.*expected 2026-10"):
        ask(explorer, datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC))


@pytest.mark.parametrize(
    ("now", "is_partial"),
    [
        (NOVEMBER.since, True),
        (datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC), True),
        (NOVEMBER.until, False),
    ],
)
def test_a_month_that_is_not_over_is_partial(
    explorer: Explorer, now: datetime, is_partial: bool
) -> None:
    explorer.answers(page([group("1")]))
    found = ask(explorer, now)
    assert (found.is_partial, found.is_final) == (is_partial, not is_partial)


def test_an_estimate_on_any_page_is_an_estimate(explorer: Explorer) -> None:
    explorer.answers(page([group("1")], token="more", Estimated=True), page([]))
    found = ask(explorer)
    assert found.is_estimated and not found.is_final


@pytest.mark.parametrize(
    ("code", "message", "kind", "refusal"),
    [
        ("ExpiredTokenException", "expired", UserError, "sign in again"),
        ("UnrecognizedClientException", "no", UserError, "sign in again"),
        ("AccessDeniedException", "not authorized", UserError, "ce:GetCostAndUsage"),
        (
            "AccessDeniedException",
            "User not enabled for cost explorer access",
            UserError,
            "enable it once",
        ),
        ("DataUnavailableException", "no data", UserError, "enable it once"),
        ("ValidationException", "too old", UserError, "14 months"),
        ("LimitExceededException", "rate", Unreachable, "throttles"),
        ("ThrottlingException", "rate", Unreachable, "throttles"),
        ("BillExpirationException", "expired", Unreachable, "changed while it was read"),
        ("InternalServerError", "oops", Unreachable, "InternalServerError"),
    ],
)
def test_a_refusal_of_aws_names_the_remedy(
    explorer: Explorer, code: str, message: str, kind: type[Exception], refusal: str
) -> None:
    explorer.fails(code, message)
    with pytest.raises(kind, match=refusal):
        ask(explorer)


def test_a_second_page_that_fails_leaves_no_half_bill(explorer: Explorer) -> None:
    explorer.answers(page([group("1")], token="more"))
    explorer.fails("LimitExceededException")
    with pytest.raises(Unreachable):
        ask(explorer)


@pytest.mark.parametrize(
    ("error", "kind", "refusal"),
    [
        (EndpointConnectionError(endpoint_url="http://x"), Unreachable, "does not answer"),
        (ReadTimeoutError(endpoint_url="http://x"), Unreachable, "does not answer"),
        (NoCredentialsError(), UserError, "sign in again"),
        (UnauthorizedSSOTokenError(), UserError, "sign in again"),
    ],
)
def test_no_answer_and_no_credentials(
    error: Exception, kind: type[Exception], refusal: str
) -> None:
    def client(service: str, region: str) -> Any:
        raise error

    with pytest.raises(kind, match=refusal):
        month_bill(NOVEMBER, client=client, now=lambda: AFTER)


def test_throttled_calls_are_tried_again_as_for_prices(
    monkeypatch: pytest.MonkeyPatch, explorer: Explorer
) -> None:
    made = []

    def client(service: str, **options: Any) -> Any:
        made.append((service, options["region_name"], options["config"].retries))
        return explorer.client(service, options["region_name"])

    monkeypatch.setattr(boto3, "client", client)
    explorer.answers(page([]))
    month_bill(NOVEMBER, now=lambda: AFTER)
    assert made == [("ce", "us-east-1", {"mode": "standard", "max_attempts": 5})]
