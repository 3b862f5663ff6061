"""What a run cost, for its report."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from turbo_vaed.costs.ledger import Ledger
from turbo_vaed.costs.money import total_usd
from turbo_vaed.costs.price_source import old_price_in


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A line of the table of costs."""

    stage: str
    node_seconds: Decimal
    usd: Decimal
    wasted_usd: Decimal
    """The part of `usd` that bought nothing."""
    share: Decimal
    """Of the run's total, 0..1."""


@dataclass(frozen=True, kw_only=True)
class CostSummary:
    """A run's cost against its budget."""

    run: str
    usd: Decimal
    wasted_usd: Decimal
    stages: tuple[StageRow, ...]
    """In the order in which they ran."""
    budget_usd: Decimal
    budget_share: Decimal
    """usd / budget_usd; above 1 when the run passed its budget."""
    old_prices: tuple[str, ...]
    """Why some of it was charged at prices that were older than they should be."""
    over_usd: Decimal
    """By how much the run passed its budget; 0 when it kept to it."""


def summarise(ledger: Ledger, run: str, budget_usd: Decimal) -> CostSummary:
    """The charges of `run` against its budget; a run without charges costs 0."""
    costs = ledger.by_stage(run)
    old = (old_price_in(group.price_source) for group in ledger.grouped(run=run))
    usd = total_usd(cost.usd for cost in costs.values())
    return CostSummary(
        run=run,
        usd=usd,
        wasted_usd=total_usd(cost.wasted_usd for cost in costs.values()),
        stages=tuple(
            StageRow(
                stage=stage,
                node_seconds=cost.node_seconds,
                usd=cost.usd,
                wasted_usd=cost.wasted_usd,
                share=cost.usd / usd if usd else Decimal(0),
            )
            for stage, cost in costs.items()
        ),
        budget_usd=budget_usd,
        budget_share=usd / budget_usd,
        old_prices=tuple(dict.fromkeys(filter(None, old))),
        over_usd=max(Decimal(0), usd - budget_usd),
    )
