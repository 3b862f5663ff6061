"""What a run costs: money, prices, the meter, the ledger, the budget."""

from turbo_vaed.costs.budget import Budget, Decision, Spending, check_start, decide
from turbo_vaed.costs.ledger import Charge, ChargeGroup, Ledger, StageCost
from turbo_vaed.costs.limits import (
    Limits,
    release_reservation,
    require_budget_left,
    reservation_of,
    spending_limit,
)
from turbo_vaed.costs.meter import Meter, Nodes, PartlyPriced, Rate, steady
from turbo_vaed.costs.money import format_usd, parse_usd, per_second, total_usd
from turbo_vaed.costs.prices import Market, Price, PriceBook
from turbo_vaed.costs.reservation import RunReservation, SpendingLimit
from turbo_vaed.costs.summary import CostSummary, StageRow, summarise

__all__ = [
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
    "RunReservation",
    "Spending",
    "SpendingLimit",
    "StageCost",
    "StageRow",
    "check_start",
    "decide",
    "format_usd",
    "parse_usd",
    "per_second",
    "release_reservation",
    "require_budget_left",
    "reservation_of",
    "spending_limit",
    "steady",
    "summarise",
    "total_usd",
]
