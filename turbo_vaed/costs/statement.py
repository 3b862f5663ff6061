"""What was spent, by customer, run and stage: against budgets, with its waste, what spot machines
saved, and what a step and a dB cost.

`statement` is pure: grouped charges and what is known of customers in, figures out. What is not
known stays so, with the reason; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from turbo_vaed.costs.accounts import (
    Account,
    Customer,
    Distillation,
    Figure,
    Figures,
    Line,
    MonthSpent,
    RunAccount,
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
"""The stage whose charges bought the steps and the dB."""

_Key = TypeVar("_Key")
OnDemandPrice = Callable[[str], Decimal | None]
"""Resource -> USD per hour of one node on demand; None where it is not known."""


def statement(
    months: Mapping[Month, Sequence[ChargeGroup]],
    *,
    customers: Sequence[Customer],
    on_demand_usd_per_hour: OnDemandPrice,
    customer: str | None = None,
    period: Month | None = None,
) -> Statement:
    """The account of a period.

    Args:
        months: the charges of all time, by the month in which they started.
        customers: all that shall be shown, with charges or without, in this order.
        customer: the only one that this is about; None for all.
        period: a month; None for all time.

    Raises:
        ValueError: a charge is of a customer that is not among `customers`.
    """
    chosen = _by(_all(months) if period is None else months.get(period, ()), _run_of)
    whole = _by(_all(months), _run_of)
    known = {one.name: place for place, one in enumerate(customers)}
    if strangers := {name for name, _ in whole} - set(known):
        raise ValueError(f"charges of {', '.join(sorted(strangers))}, of whom nothing was told")
    runs = tuple(
        _run(found, whole[key], customers[known[key[0]]], on_demand_usd_per_hour)
        for key, found in sorted(
            chosen.items(),
            key=lambda item: (known[item[0][0]], min(g.first_at for g in item[1]), item[0]),
        )
    )
    accounts = tuple(_account(one, [r for r in runs if r.customer == one.name], period)
                     for one in customers)  # fmt: skip
    return Statement(
        customer=customer,
        period=period,
        total=_total(accounts, runs),
        customers=accounts,
        runs=runs,
        months=tuple(
            MonthSpent(
                month=month,
                spent_usd=total_usd(g.amount_usd for g in found),
                wasted_usd=_part(found, "wasted"),
            )
            for month, found in sorted(months.items())
            if period is None or month <= period
        ),
    )


def run_that_covers(
    groups: Iterable[ChargeGroup], customer: str, first_at: datetime, last_at: datetime
) -> str | None:
    """The one run of a customer that was charged for distillation from `first_at` to `last_at`.

    None where no run was, or several.
    """
    stages = (g for g in groups if g.customer == customer and g.stage == DISTILL)
    found = [
        run
        for (_, run), its in _by(stages, _run_of).items()
        if min(g.first_at for g in its) <= first_at and last_at <= max(g.last_at for g in its)
    ]
    return found[0] if len(found) == 1 else None


def _run(
    groups: Sequence[ChargeGroup],
    whole: Sequence[ChargeGroup],
    customer: Customer,
    on_demand: OnDemandPrice,
) -> RunAccount:
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
    return RunAccount(
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


def _line(stage: str, market: str, groups: Sequence[ChargeGroup], on_demand: OnDemandPrice) -> Line:
    return Line(
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


def _account(customer: Customer, runs: Sequence[RunAccount], period: Month | None) -> Account:
    none = "no run yet" if period is None else f"no run in {period.label}"
    limit = customer.run_budget_usd
    if not runs:
        allowed = limit if isinstance(limit, str) else f"a run may spend {format_usd(limit)}"
        budget = left = Figure(usd=None, note=f"{none}; {allowed}")
    else:
        budget = _sum(run.figures.budget for run in runs)
        left = _sum(run.figures.left for run in runs)
    if isinstance(customer.distilled, str):
        why = customer.distilled
    elif runs:
        why = f"the history that is kept is of run {customer.distilled.run}, which is not in it"
    else:
        why = none
    return _of_runs(customer.name, runs, budget=budget, left=left, why=why)


def _total(accounts: Sequence[Account], runs: Sequence[RunAccount]) -> Account:
    with_runs = [account for account in accounts if account.runs]
    return _of_runs(
        "",
        runs,
        budget=_of_all(with_runs, lambda figures: figures.budget),
        left=_of_all(with_runs, lambda figures: figures.left),
        why="not known of any run",
    )


def _of_all(accounts: Sequence[Account], figure: Callable[[Figures], Figure]) -> Figure:
    """The sum over customers; a reason names those of whom it is not known."""
    if not accounts:
        return Figure(usd=None, note="no run")
    unknown = [account.name for account in accounts if figure(account.figures).usd is None]
    if unknown:
        return Figure(usd=None, note=f"not known of {', '.join(unknown)}")
    return _sum(figure(account.figures) for account in accounts)


def _of_runs(
    name: str, runs: Sequence[RunAccount], *, budget: Figure, left: Figure, why: str
) -> Account:
    """What runs add up to; `why` steps and dB have no price where none has."""
    known = [(run.distill_usd, run.distilled) for run in runs if run.distilled is not None]
    return Account(
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


def _all(months: Mapping[Month, Sequence[ChargeGroup]]) -> list[ChargeGroup]:
    return [group for _, found in sorted(months.items()) for group in found]


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
