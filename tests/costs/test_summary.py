from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.costs.charges import charge
from turbo_vaed.costs import Charge, Ledger, summarise
from turbo_vaed.costs.price_source import OLD_PRICE

START = datetime(2026, 11, 22, tzinfo=UTC)


def test_summary_against_the_budget(tmp_path: Path) -> None:
    def charged(run: str, stage: str, second: int, usd: str, useful: str = "useful") -> Charge:
        return Charge(
            run=run,
            customer="demo",
            stage=stage,
            resource="host",
            market="local",
            quantity=Decimal(10),
            unit="node-second",
            unit_price_usd=Decimal(usd) / 10,
            amount_usd=Decimal(usd),
            started_at=START + timedelta(seconds=second),
            ended_at=START + timedelta(seconds=second + 10),
            useful=useful,  # type: ignore[arg-type]
            price_source="a test",
        )

    budget = Decimal(4)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(
            [
                charged("r", "validate", 0, "1"),
                charged("r", "distill", 10, "2"),
                charged("r", "distill", 20, "2", "wasted"),
                charged("another", "distill", 5, "77"),
            ]
        )
        found = summarise(ledger, "r", budget)
        nothing = summarise(ledger, "unheard-of", budget)
    assert (found.usd, found.wasted_usd, found.over_usd) == (5, 2, 1)
    assert found.budget_share == Decimal("1.25")
    assert [(s.stage, s.node_seconds, s.usd, s.wasted_usd, s.share) for s in found.stages] == [
        ("validate", 10, 1, 0, Decimal("0.2")),
        ("distill", 20, 4, 2, Decimal("0.8")),
    ]
    assert found.old_prices == ()
    assert (nothing.usd, nothing.stages, nothing.over_usd) == (0, (), 0)
    with pytest.raises(AttributeError):
        found.usd = Decimal(0)  # type: ignore[misc]


def test_an_old_price_is_reported_once_with_its_reason(tmp_path: Path) -> None:
    why = f"{OLD_PRICE} 2026-11-21 09:00 UTC: AWS does not answer"
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.add_all(charge(i, run="r", price_source=f"AWS price list; {why}") for i in range(2))
        assert summarise(ledger, "r", Decimal(1)).old_prices == (why,)
