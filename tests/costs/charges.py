"""Charges for tests of the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from turbo_vaed.costs import Charge

START = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)


def charge(second: int = 0, **changes: Any) -> Charge:
    """15 node-seconds of the demo's clip stage, `second` after START."""
    values: dict[str, Any] = {
        "run": "demo-1",
        "customer": "demo",
        "stage": "clip",
        "resource": "host",
        "market": "local",
        "quantity": Decimal(15),
        "unit": "node-second",
        "unit_price_usd": Decimal("0.000022222222222222"),
        "started_at": START + timedelta(seconds=second),
        "ended_at": START + timedelta(seconds=second + 15),
        "useful": "useful",
        "price_source": "a test",
        **changes,
    }
    if "amount_usd" not in values:
        amount = values["quantity"] * values["unit_price_usd"]
        values["amount_usd"] = amount.quantize(Decimal("1e-12"))
    return Charge(**values)
