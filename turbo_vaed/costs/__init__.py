"""What a run costs: money, prices, the meter, the ledger, the budget."""

from turbo_vaed.costs.budget import Budget, Decision, Spending, check_start, decide
from turbo_vaed.costs.ledger import Charge, ChargeGroup, Ledger, StageCost
from turbo_vaed.costs.limits import Limits, allowance, require_allowance
from turbo_vaed.costs.meter import Meter, Nodes, PartlyPriced, Rate, steady
from turbo_vaed.costs.money import format_usd, parse_usd, per_second, total_usd
from turbo_vaed.costs.prices import Market, Price, PriceBook
from turbo_vaed.costs.reservation import Allowance, Share
from turbo_vaed.costs.summary import CostSummary, StageRow, summarise

__all__ = [
    "Allowance",
    "Budget",
    "Charge",
    "ChargeGroup",
    "CostSummary",
    "Decision",
    "Ledger",
    "Limits",
    "Market",
    "Meter",
    "Nodes",
    "PartlyPriced",
    "Price",
    "PriceBook",
    "Rate",
    "Share",
    "Spending",
    "StageCost",
    "StageRow",
    "allowance",
    "check_start",
    "decide",
    "format_usd",
    "parse_usd",
    "per_second",
    "require_allowance",
    "steady",
    "summarise",
    "total_usd",
]
