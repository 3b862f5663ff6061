"""A meter whose clock and ledger are the test's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from turbo_vaed.costs import Charge, Ledger, Meter, Rate, steady
from turbo_vaed.errors import Unreachable

START = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
PRICE = Decimal("0.08")


class Clock:
    """Nanoseconds that move when the test moves them."""

    def __init__(self, start: int = 123_456_789_012_345) -> None:
        self.now = start

    def __call__(self) -> int:
        return self.now


class Memory(Ledger):
    """Charges in a list; fails as often as the test asks, after or before storing them."""

    def __init__(self, failures: int = 0, *, keeps: bool = False) -> None:
        self.kept: dict[str, Charge] = {}
        self.failures, self.keeps = failures, keeps

    def add_all(self, charges: Iterable[Charge]) -> int:
        failing, self.failures = self.failures > 0, self.failures - 1
        if failing and not self.keeps:
            raise Unreachable("the ledger is gone")
        self.kept |= {charge.key: charge for charge in charges}
        if failing:
            raise Unreachable("the ledger took it and hung up")
        return 0

    def charges(self, *, run: str | None = None, customer: str | None = None) -> tuple[Charge, ...]:
        return tuple(c for c in self.kept.values() if c.run == run and c.customer == customer)

    @property
    def rows(self) -> list[Charge]:
        return list(self.kept.values())


def rate(usd_per_hour: Any = PRICE, resource: str = "host", **changes: Any) -> Rate:
    values: dict[str, Any] = {"market": "local", "source": "a test", **changes}
    return Rate(resource=resource, usd_per_hour=usd_per_hour, **values)


def meter(
    ledger: Ledger, usd_per_hour: Any = PRICE, count: int = 1, nodes: Any = None, **changes: Any
) -> Meter:
    values: dict[str, Any] = {
        "run": "demo-1",
        "customer": "demo",
        "stage": "clip",
        "nodes": nodes or steady(rate(usd_per_hour), count),
        "interval_seconds": 3600.0,
        "now": lambda: START,
    }
    return Meter(ledger, **{**values, **changes})
