"""Charges and bills for tests, and a Cost Explorer whose answers are given."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import boto3
from botocore.stub import Stubber

from turbo_vaed.costs import Charge
from turbo_vaed.costs.bill import Bill, BillRow
from turbo_vaed.costs.months import Month

NOVEMBER = Month(year=2026, number=11)
AFTER = datetime(2026, 12, 9, tzinfo=UTC)


def charge(usd: str | Decimal, **changes: Any) -> Charge:
    """An hour at the first noon of November, in one unit at that price."""
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    values: dict[str, Any] = {
        "run": "acme-1",
        "customer": "acme",
        "stage": "distill",
        "resource": "node",
        "market": "spot",
        "quantity": Decimal(1),
        "unit": "node-hour",
        "unit_price_usd": Decimal(usd),
        "amount_usd": Decimal(usd),
        "started_at": noon,
        "ended_at": noon + timedelta(hours=1),
        "useful": "useful",
        "price_source": "a test",
    }
    return Charge(**{**values, **changes})


def bill(*rows: BillRow, **changes: Any) -> Bill:
    """A final one."""
    values: dict[str, Any] = {
        "month": NOVEMBER,
        "rows": rows,
        "read_at": AFTER,
        "is_estimated": False,
        "requests": 1,
    }
    return Bill(**{**values, **changes})


def billed(
    usd: str | Decimal, customer: str | None = "acme", run: str | None = "acme-1", problem: str = ""
) -> BillRow:
    return BillRow(customer=customer, run=run, usd=Decimal(usd), problem=problem)


def group(usd: str, customer: str = "acme", run: str = "acme-1", unit: str = "USD") -> Any:
    """As Cost Explorer returns it."""
    return {
        "Keys": [f"turbo-vaed:customer${customer}", f"turbo-vaed:run${run}"],
        "Metrics": {"UnblendedCost": {"Amount": usd, "Unit": unit}},
    }


def page(groups: Iterable[Any], token: str = "", **changes: Any) -> dict[str, Any]:
    """A page of November, or of the `TimePeriod` among the changes."""
    result = {
        "TimePeriod": {"Start": "2026-11-01", "End": "2026-12-01"},
        "Total": {},
        "Groups": list(groups),
        "Estimated": False,
    }
    more = {"NextPageToken": token} if token else {}
    return {"ResultsByTime": [{**result, **changes}], **more}


REQUEST = {
    "TimePeriod": {"Start": "2026-11-01", "End": "2026-12-01"},
    "Granularity": "MONTHLY",
    "Metrics": ["UnblendedCost"],
    "GroupBy": [
        {"Type": "TAG", "Key": "turbo-vaed:customer"},
        {"Type": "TAG", "Key": "turbo-vaed:run"},
    ],
    "Filter": {
        "And": [
            {
                "Tags": {
                    "Key": "turbo-vaed:project",
                    "Values": ["turbo-vaed"],
                    "MatchOptions": ["EQUALS"],
                }
            },
            {"Not": {"Dimensions": {"Key": "RECORD_TYPE", "Values": ["Credit", "Refund"]}}},
        ]
    },
}
"""The request to Cost Explorer for November."""


class Explorer:
    """Cost Explorer with its answers given, in order; every request is checked."""

    def __init__(self, **changes: Any) -> None:
        self._request = {**REQUEST, **changes}
        self._client = boto3.client(
            "ce", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
        )
        self.stub = Stubber(self._client)
        self.stub.activate()
        self._token = ""

    def answers(self, *pages: dict[str, Any]) -> None:
        for one in pages:
            more = {"NextPageToken": self._token} if self._token else {}
            self.stub.add_response("get_cost_and_usage", one, {**self._request, **more})
            self._token = one.get("NextPageToken", "")

    def fails(self, code: str, message: str = "no") -> None:
        self.stub.add_client_error("get_cost_and_usage", code, message)

    def client(self, service: str, region: str) -> Any:
        assert (service, region) == ("ce", "us-east-1")
        return self._client
