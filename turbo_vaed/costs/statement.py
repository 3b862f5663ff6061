"""What was spent, by customer, run and stage: against budgets, with its waste, what spot machines
saved, and what a step and a dB cost.

`statement` is pure: grouped charges and what is known of customers in, figures out. What is not
known stays so, with the reason; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from turbo_vaed.costs.customer_costs import (
    Customer,
    CustomerCost,
    Distillation,
    Figure,
    Figures,
    MonthSpent,
    RunCost,
    StageCostLine,
    Statement,
)
from turbo_vaed.costs.ledger import ChargeGroup, Useful
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import (
    difference_usd,
    format_usd,
    seconds_usd,
    total_usd,
    usd_per,
)
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.price_source import old_price_in

DISTILL = "distill"
"""The stage whose charges paid for the steps and the dB."""
OF_RUNS_ALONE = "of the runs' budgets alone, for a month's limits count in a report of that month"

_Key = TypeVar("_Key")
OnDemandPrice = Callable[[str], Decimal | None]
"""Resource -> USD per hour of one node on demand; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class MonthLimits:
    """What may be spent in a calendar month, USD."""

    customers: Mapping[str, Decimal] = field(default_factory=dict)
    """Of all runs of a customer; those who have such a limit."""
    total: Decimal | None = None
    """Of all customers together; None for no such limit."""


NO_LIMITS = MonthLimits()


def statement(
    inside: Sequence[ChargeGroup],
    *,
    outside: Sequence[ChargeGroup] = (),
    months: Sequence[MonthSpent],
    customers: Sequence[Customer],
    on_demand_usd_per_hour: OnDemandPrice,
    customer: str | None = None,
    period: Month | None = None,
    limits: MonthLimits = NO_LIMITS,
) -> Statement:
    """The costs of a period.

    Args:
        inside: the charges of the period.
        outside: those of the same runs before and after it.
        months: from the first with charges to the last, or to the period's.
        customers: all that shall be shown, with charges or without, in this order.
        customer: the only one that this is about; None for all.
        period: a month; None for all time.
        limits: of one month; they hold where the period is one, or all charges lie in one.

    Raises:
        ValueError: a charge is of a customer that is not among `customers`.
    """
    chosen = _by(inside, _run_of)
    whole = _by((*inside, *outside), _run_of)
    known = {one.name: place for place, one in enumerate(customers)}
    if strangers := {name for name, _ in chosen} - set(known):
        raise ValueError(
            f"charges of {', '.join(sorted(strangers))}, who are not among the customers"
        )
    runs = tuple(
        _run(found, whole[key], customers[known[key[0]]], on_demand_usd_per_hour)
        for key, found in sorted(
            chosen.items(),
            key=lambda item: (known[item[0][0]], min(g.first_at for g in item[1]), item[0]),
        )
    )
    month = months[0].month if period is None and len(months) == 1 else period
    all_usd = limits.total if customer is None else None  # of one, what others spent is not known
    is_limited = bool(limits.customers) or all_usd is not None
    customer_costs = tuple(
        _customer_cost(
            one,
            [run for run in runs if run.customer == one.name],
            period,
            _limit(limits.customers.get(one.name), "budget.customer_month_usd", month),
            note=OF_RUNS_ALONE if is_limited and month is None else "",
        )
        for one in customers
    )
    total = _total(customer_costs, runs, _limit(all_usd, "budget.total_month_usd", month))
    return Statement(
        customer=customer,
        period=period,
        total=total,
        customers=customer_costs,
        runs=runs,
        months=tuple(months),
    )


def month_spent(month: Month, groups: Sequence[ChargeGroup]) -> MonthSpent:
    """A month by all its charges."""
    return MonthSpent(
        month=month,
        spent_usd=total_usd(g.amount_usd for g in groups),
        wasted_usd=_part(groups, "wasted"),
    )


def run_that_covers(
    groups: Iterable[ChargeGroup], customer: str, first_at: datetime, last_at: datetime
) -> str | None:
    """The one run of a customer that was charged for distillation from `first_at` to `last_at`.

    None where no run was, or several.
    """
    stages = (g for g in groups if g.customer == customer and g.stage == DISTILL)
    runs = {
        run: (min(g.first_at for g in its), max(g.last_at for g in its))
        for (_, run), its in _by(stages, _run_of).items()
    }
    return covering(runs, first_at, last_at)


def covering(
    runs: Mapping[str, tuple[datetime, datetime]], first_at: datetime, last_at: datetime
) -> str | None:
    """As `run_that_covers`, by when each run's distillation was charged first and last."""
    found = [run for run, (began, ended) in runs.items() if began <= first_at and last_at <= ended]
    return found[0] if len(found) == 1 else None


def _run(
    groups: Sequence[ChargeGroup],
    whole: Sequence[ChargeGroup],
    customer: Customer,
    on_demand: OnDemandPrice,
) -> RunCost:
    """A run in the period, and all of it."""
    lines = tuple(
        _line(stage, market, found, on_demand)
        for (stage, market), found in sorted(
            _by(groups, lambda g: (g.stage, g.market)).items(),
            key=lambda item: (min(g.first_at for g in item[1]), item[0]),
        )
    )
    spent = total_usd(g.amount_usd for g in groups)
    total = total_usd(g.amount_usd for g in whole)
    distill_usd = total_usd(g.amount_usd for g in whole if g.stage == DISTILL)
    run, limit, distilled = groups[0].run, customer.run_budget_usd, customer.distilled
    if isinstance(distilled, str):
        per_step = per_db = Figure(usd=None, note=distilled)
        own = None
    elif distilled.run != run:
        why = f"the history that is kept is of the distillation of run {distilled.run}"
        per_step = per_db = Figure(usd=None, note=why)
        own = None
    else:
        own = distilled
        per_step, per_db = _per_step([(distill_usd, own)]), _per_db([(distill_usd, own)])
    old = [(g.amount_usd, why) for g in groups if (why := old_price_in(g.price_source))]
    return RunCost(
        customer=customer.name,
        old_usd=total_usd(usd for usd, _ in old),
        old_prices=tuple(dict.fromkeys(why for _, why in old)),
        run=run,
        first_at=min(g.first_at for g in groups),
        last_at=max(g.last_at for g in groups),
        outside_usd=difference_usd(total, spent),
        distill_usd=distill_usd,
        distilled=own,
        lines=lines,
        figures=Figures(
            charges=sum(line.charges for line in lines),
            node_seconds=total_usd(line.node_seconds for line in lines),
            spent_usd=spent,
            useful_usd=_part(groups, "useful"),
            wasted_usd=_part(groups, "wasted"),
            budget=Figure(usd=None, note=limit) if isinstance(limit, str) else Figure(usd=limit),
            left=Figure(usd=None, note=limit)
            if isinstance(limit, str)
            else Figure(usd=difference_usd(limit, total)),
            saving=_sum((line.saving for line in lines), "nothing ran on spot"),
            per_step=per_step,
            per_db=per_db,
        ),
    )


def _line(
    stage: str, market: str, groups: Sequence[ChargeGroup], on_demand: OnDemandPrice
) -> StageCostLine:
    return StageCostLine(
        stage=stage,
        market=market,
        charges=sum(g.charges for g in groups),
        node_seconds=total_usd(g.quantity for g in groups if g.unit == UNIT),
        spent_usd=total_usd(g.amount_usd for g in groups),
        useful_usd=_part(groups, "useful"),
        wasted_usd=_part(groups, "wasted"),
        saving=_saving(groups, on_demand),
        first_at=min(g.first_at for g in groups),
        last_at=max(g.last_at for g in groups),
    )


def _saving(groups: Sequence[ChargeGroup], on_demand: OnDemandPrice) -> Figure:
    """Of the spot charges among them; waste was paid for, too, and corrections cancel out."""
    spot = [g for g in groups if g.market == "spot"]
    if not spot:
        return Figure(usd=Decimal(0), note="nothing ran on spot")
    if other := sorted({g.unit for g in spot if g.unit != UNIT}):
        return Figure(usd=None, note=f"spot was charged by {', '.join(other)}, not by {UNIT}")
    by_resource = _by(spot, lambda g: g.resource)
    prices = {resource: on_demand(resource) for resource in by_resource}
    if missing := sorted(resource for resource, price in prices.items() if price is None):
        return Figure(usd=None, note=f"no on-demand price of {', '.join(missing)} is known")
    would = total_usd(
        seconds_usd(total_usd(g.quantity for g in found), price)
        for resource, found in by_resource.items()
        if (price := prices[resource]) is not None
    )
    return Figure(usd=difference_usd(would, total_usd(g.amount_usd for g in spot)))


def _limit(usd: Decimal | None, name: str, month: Month | None) -> Figure | None:
    """A month's limit, where there is one and the figures are of a month."""
    if usd is None or month is None:
        return None
    return Figure(usd=usd, note=f"{name} in {month.label}")


def _nearest(
    budget: Figure, left: Figure, limit: Figure | None, runs: Sequence[RunCost]
) -> tuple[Figure, Figure]:
    """The smaller one of the runs' budgets and the limit of their month, and what is left of it."""
    if limit is None or limit.usd is None or budget.usd is None or budget.usd <= limit.usd:
        return budget, left
    spent = total_usd(run.figures.spent_usd for run in runs)
    return limit, Figure(usd=difference_usd(limit.usd, spent))


def _customer_cost(
    customer: Customer,
    runs: Sequence[RunCost],
    period: Month | None,
    limit: Figure | None,
    *,
    note: str,
) -> CustomerCost:
    """A customer's costs; `note` explains the figure of what is left, where it is known."""
    none = "no run yet" if period is None else f"no run in {period.label}"
    of_run = customer.run_budget_usd
    if not runs:
        if not isinstance(of_run, str):
            most = of_run if limit is None or limit.usd is None else min(of_run, limit.usd)
            of_run = f"a run may spend {format_usd(most)}"
        budget = left = Figure(usd=None, note=f"{none}; {of_run}")
    else:
        budget, left = _nearest(
            _sum(run.figures.budget for run in runs),
            _sum(run.figures.left for run in runs),
            limit,
            runs,
        )
        if left.usd is not None:
            left = replace(left, note=note)
    if isinstance(customer.distilled, str):
        why = customer.distilled
    elif runs:
        why = f"the history that is kept is of run {customer.distilled.run}, which is not in it"
    else:
        why = none
    return _of_runs(customer.name, runs, budget=budget, left=left, why=why)


def _total(
    customer_costs: Sequence[CustomerCost], runs: Sequence[RunCost], limit: Figure | None
) -> CustomerCost:
    with_runs = [customer_cost for customer_cost in customer_costs if customer_cost.runs]
    budget, left = _nearest(
        _of_all(with_runs, lambda figures: figures.budget),
        _of_all(with_runs, lambda figures: figures.left),
        limit,
        runs,
    )
    return _of_runs("", runs, budget=budget, left=left, why="not known of any run")


def _of_all(customer_costs: Sequence[CustomerCost], figure: Callable[[Figures], Figure]) -> Figure:
    """The sum over customers; where it is unknown, the reason names those it is unknown for."""
    if not customer_costs:
        return Figure(usd=None, note="no run")
    unknown = [
        customer_cost.name
        for customer_cost in customer_costs
        if figure(customer_cost.figures).usd is None
    ]
    if unknown:
        return Figure(usd=None, note=f"not known of {', '.join(unknown)}")
    if len(customer_costs) == 1:
        return figure(customer_costs[0].figures)
    return _sum(figure(customer_cost.figures) for customer_cost in customer_costs)


def _of_runs(
    name: str, runs: Sequence[RunCost], *, budget: Figure, left: Figure, why: str
) -> CustomerCost:
    """What runs add up to; `why` steps and dB have no price where none has."""
    known = [(run.distill_usd, run.distilled) for run in runs if run.distilled is not None]
    return CustomerCost(
        name=name,
        runs=len(runs),
        figures=Figures(
            charges=sum(run.figures.charges for run in runs),
            node_seconds=total_usd(run.figures.node_seconds for run in runs),
            spent_usd=total_usd(run.figures.spent_usd for run in runs),
            useful_usd=total_usd(run.figures.useful_usd for run in runs),
            wasted_usd=total_usd(run.figures.wasted_usd for run in runs),
            budget=budget,
            left=left,
            saving=_sum((run.figures.saving for run in runs), "nothing ran on spot"),
            per_step=_per_step(known) if known else Figure(usd=None, note=why),
            per_db=_per_db(known) if known else Figure(usd=None, note=why),
        ),
    )


def _sum(figures: Iterable[Figure], of_none: str = "") -> Figure:
    """The sum; where one is not known it is not either, for the same reasons."""
    found = list(figures)
    reasons = dict.fromkeys(one.note for one in found if one.usd is None)
    if reasons:
        return Figure(usd=None, note="; ".join(reasons))
    known = total_usd(one.usd for one in found if one.usd is not None)
    return Figure(usd=known, note=of_none if all(one.note == of_none for one in found) else "")


def _per_step(known: Sequence[tuple[Decimal, Distillation]]) -> Figure:
    steps = sum(distilled.steps_kept for _, distilled in known)
    if steps < 1:
        return Figure(usd=None, note="no step was kept")
    usd = total_usd(usd for usd, _ in known)
    note = f"{format_usd(usd)} of distillation over {steps:,} steps of {_runs(known)}"
    return Figure(usd=usd_per(usd, steps), note=note)


def _per_db(known: Sequence[tuple[Decimal, Distillation]]) -> Figure:
    if unmeasured := [one.run for _, one in known if one.db_gained is None]:
        why = f"fewer than two validations of run {', '.join(unmeasured)} are known"
        return Figure(usd=None, note=why)
    gained = total_usd(one.db_gained for _, one in known if one.db_gained is not None)
    if gained <= 0:
        return Figure(usd=None, note="validations after the first brought no dB")
    usd = total_usd(usd for usd, _ in known)
    note = f"{format_usd(usd)} of distillation over {gained:.2f} dB gained by {_runs(known)}"
    return Figure(usd=usd_per(usd, gained), note=note)


def _runs(known: Sequence[tuple[Decimal, Distillation]]) -> str:
    return f"run {known[0][1].run}" if len(known) == 1 else f"{len(known)} runs"


def _run_of(group: ChargeGroup) -> tuple[str, str]:
    return group.customer, group.run


def _by(
    groups: Iterable[ChargeGroup], key: Callable[[ChargeGroup], _Key]
) -> dict[_Key, list[ChargeGroup]]:
    found: dict[_Key, list[ChargeGroup]] = {}
    for group in groups:
        found.setdefault(key(group), []).append(group)
    return found


def _part(groups: Iterable[ChargeGroup], useful: Useful) -> Decimal:
    return total_usd(g.amount_usd for g in groups if g.useful == useful)
