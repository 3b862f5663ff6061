"""What a run costs: money, prices, the meter, the ledger, the budget."""

from turbo_vaed.costs.budget import Budget, Decision, Spending, check_start, decide
from turbo_vaed.costs.ledger import Charge, ChargeGroup, Ledger, StageCost
from turbo_vaed.costs.meter import Meter
from turbo_vaed.costs.money import format_usd, parse_usd, per_second, total_usd
from turbo_vaed.costs.prices import Market, Price, PriceBook
from turbo_vaed.costs.summary import CostSummary, StageRow, summarise

__all__ = [
    "Budget",
    "Charge",
    "ChargeGroup",
    "CostSummary",
    "Decision",
    "Ledger",
    "Market",
    "Meter",
    "Price",
    "PriceBook",
    "Spending",
    "StageCost",
    "StageRow",
    "check_start",
    "decide",
    "format_usd",
    "parse_usd",
    "per_second",
    "summarise",
    "total_usd",
]
