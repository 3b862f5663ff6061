"""What AWS billed for a month, by customer and run, from Cost Explorer by the project's tags.

Amounts are unblended cost before credits and refunds, which pay what was used and do not make it
cheaper. Costs with the project's tag but without a customer or run are a row of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from turbo_vaed.costs.aws_prices import Client, boto3_client
from turbo_vaed.costs.money import parse_usd
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.tags import CUSTOMER, PROJECT, PROJECT_VALUE, RUN
from turbo_vaed.errors import Fault, Unreachable, UserError

REQUEST_USD = Decimal("0.01")
"""What AWS asks for each page of Cost Explorer."""
_REGION = "us-east-1"  # the only one that answers
_METRIC = "UnblendedCost"
_NOT_COUNTED = ["Credit", "Refund"]
_MOST_DIGITS, _MOST_DECIMALS = 12, 40
"""Of an amount; beyond them it is a mistake, and its sum with others would not be exact."""

_CREDENTIALS = (
    "ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId",
    "UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch",
    "IncompleteSignature", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
)  # fmt: skip
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
_THROTTLED = ("LimitExceededException", "ThrottlingException", "Throttling", "TooManyRequests")
_PAGING = ("BillExpirationException", "RequestChangedException", "InvalidNextTokenException")


@dataclass(frozen=True, kw_only=True)
class BillRow:
    """What AWS billed for one run."""

    customer: str | None
    """None: the resource has no such tag, or AWS' answer could not be read."""
    run: str | None
    usd: Decimal
    problem: str = ""
    """Why the row cannot be relied on, in words; such a row is always shown."""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """A month's bill of everything that has the project's tag."""

    month: Month
    rows: tuple[BillRow, ...]
    read_at: datetime
    is_estimated: bool
    """AWS may still change it."""
    requests: int
    """Pages, each of which AWS charges for."""

    @property
    def is_partial(self) -> bool:
        """Whether the month was not over when the bill was read."""
        return self.read_at < self.month.until

    @property
    def is_final(self) -> bool:
        return not (self.is_partial or self.is_estimated)


def month_bill(
    month: Month,
    *,
    client: Client = boto3_client,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Bill:
    """Ask Cost Explorer, for 0.01 USD a page.

    Raises:
        UserError: the month has not begun, AWS does not keep it any more, no credentials or
            expired ones, a missing permission, or Cost Explorer is not enabled.
        Unreachable: AWS does not answer, throttles beyond its client's five attempts, or fails.
        Fault: its answer makes no sense: not in USD, no amount, another month, a group twice.
    """
    read_at = now()
    if month.since > read_at:
        raise UserError(
            f"{month} has not begun, so that nothing is billed; expected {read_at:%Y-%m} or before"
        )
    pages = _pages(month, client)
    results = [result for page in pages for result in page.get("ResultsByTime", ())]
    if not results:
        raise Fault(
            f"Cost Explorer returned nothing for {month}, not even an empty result; try again"
        )
    rows: dict[tuple[str, ...], BillRow] = {}
    for result in results:
        _check_result(result, month)
        for group in result.get("Groups", ()):
            keys = tuple(group.get("Keys", ()))
            if keys in rows:
                raise Fault(f"Cost Explorer returned {' and '.join(keys)} twice; try again")
            rows[keys] = _row(keys, _usd(group.get("Metrics", {}), " and ".join(keys)))
    return Bill(
        month=month,
        rows=tuple(rows.values()),
        read_at=read_at,
        is_estimated=any(result.get("Estimated") for result in results),
        requests=len(pages),
    )


def _pages(month: Month, client: Client) -> list[dict[str, Any]]:
    request: dict[str, Any] = {
        "TimePeriod": {"Start": f"{month.since:%Y-%m-%d}", "End": f"{month.until:%Y-%m-%d}"},
        "Granularity": "MONTHLY",
        "Metrics": [_METRIC],
        "GroupBy": [{"Type": "TAG", "Key": CUSTOMER}, {"Type": "TAG", "Key": RUN}],
        "Filter": {
            "And": [
                {"Tags": {"Key": PROJECT, "Values": [PROJECT_VALUE], "MatchOptions": ["EQUALS"]}},
                {"Not": {"Dimensions": {"Key": "RECORD_TYPE", "Values": _NOT_COUNTED}}},
            ]
        },
    }
    pages: list[dict[str, Any]] = []
    with _asking():
        explorer = client("ce", _REGION)
        while not pages or request.get("NextPageToken"):
            pages.append(explorer.get_cost_and_usage(**request))
            token = pages[-1].get("NextPageToken")
            if token and token == request.get("NextPageToken"):
                raise Fault("Cost Explorer returns the same page again and again; try later")
            request["NextPageToken"] = token
    return pages


def _check_result(result: dict[str, Any], month: Month) -> None:
    """Check that it is for the month, and that all costs are in groups."""
    start = result.get("TimePeriod", {}).get("Start")
    if start != f"{month.since:%Y-%m-%d}":
        raise Fault(f"Cost Explorer returned {start} for {month}; try again")
    total = result.get("Total")
    if total and _usd(total, "the month") != 0:
        raise Fault(
            f"Cost Explorer returned a total for {month}, {total}, without groups; try again"
        )


def _usd(metrics: dict[str, Any], what: str) -> Decimal:
    """The amount of a group.

    Raises:
        Fault: there is none, it is no number that money can be, or not in USD.
    """
    found = metrics.get(_METRIC, {})
    text, unit = found.get("Amount"), found.get("Unit")
    if unit != "USD":
        raise Fault(
            f"Cost Explorer returned {text} {unit} for {what}; expected USD: the ledger is in "
            "USD, and no rate between them is known"
        )
    try:
        usd = parse_usd(text)
    except UserError as error:
        raise Fault(
            f"Cost Explorer returned an amount of {text!r} for {what}; try again"
        ) from error
    exponent = usd.as_tuple().exponent
    assert isinstance(exponent, int), "finite"
    if (usd and usd.adjusted() >= _MOST_DIGITS) or -exponent > _MOST_DECIMALS:
        raise Fault(
            f"Cost Explorer returned {text} USD for {what}; expected at most {_MOST_DIGITS} "
            f"digits and {_MOST_DECIMALS} decimals"
        )
    return usd


def _row(keys: tuple[str, ...], usd: Decimal) -> BillRow:
    """A group `KEY$VALUE` of both tags; one that cannot be read keeps its money."""
    problem = ""
    if usd < 0:
        problem = "negative, though credits and refunds are left out"
    values = [
        value
        for key, text in zip((CUSTOMER, RUN), keys, strict=False)
        for prefix, found, value in [text.partition("$")]
        if found and prefix == key
    ]
    if len(keys) != 2 or len(values) != 2:
        note = f"Cost Explorer's group {list(keys)} names no customer and run"
        return BillRow(
            customer=None, run=None, usd=usd, problem="; ".join(filter(None, (note, problem)))
        )
    customer, run = values
    return BillRow(customer=customer or None, run=run or None, usd=usd, problem=problem)


@contextmanager
def _asking() -> Iterator[None]:
    """AWS's own errors as ours."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        SSOError,
        TokenRetrievalError,
    )

    try:
        yield
    except ClientError as error:
        raise _aws_error(error.response.get("Error", {}).get("Code", ""), error) from error
    except (
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        SSOError,
        TokenRetrievalError,
    ) as error:
        raise UserError(_sign_in(error)) from error
    except BotoCoreError as error:
        raise Unreachable(f"Cost Explorer does not answer: {error}; try again later") from error


def _aws_error(code: str, error: Exception) -> UserError | Unreachable:
    """What a refusal of AWS means, by its code."""
    if code in _CREDENTIALS:
        return UserError(_sign_in(error))
    if code == "DataUnavailableException" or "not enabled for cost explorer" in str(error).lower():
        return UserError(
            f"Cost Explorer has no data of this account ({error}): enable it once in the console "
            "under Billing and Cost Management; the first data takes about 24 hours"
        )
    if code in _DENIED:
        return UserError(
            f"AWS does not let these credentials see the bill ({error}): they need "
            "ce:GetCostAndUsage, and the account must let IAM see billing"
        )
    if code == "ValidationException":
        return UserError(
            f"Cost Explorer does not take the question ({error}); it keeps 14 months unless "
            "more are enabled in the console"
        )
    if code in _THROTTLED:
        return Unreachable(f"Cost Explorer throttles ({error}); try again in some minutes")
    if code in _PAGING:
        return Unreachable(f"the bill changed while it was read ({error}); try again")
    return Unreachable(f"Cost Explorer fails with {code or 'no code'} ({error}); try again later")


def _sign_in(error: Exception) -> str:
    return (
        f"AWS takes no credentials of this machine, or they are expired ({error}): sign in again, "
        "give this machine a role, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    )
