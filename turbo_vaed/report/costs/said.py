"""A statement of costs in words: its sentence, its notes, its figures as texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from turbo_vaed.costs.customer_costs import CustomerCost, Figure, Figures, RunCost, Statement
from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import words

UNKNOWN = "\N{EM DASH}"
MOST_NAMED = 8
"""Customers of one note."""

FIGURES: tuple[tuple[str, Callable[[Figures], Figure]], ...] = (
    ("budget", lambda figures: figures.budget),
    ("left", lambda figures: figures.left),
    ("saved by spot", lambda figures: figures.saving),
    ("cost per kept step", lambda figures: figures.per_step),
    ("cost per dB", lambda figures: figures.per_db),
)
"""Those that may be unknown, by the names that notes call them."""


def usd(amount: Decimal | Figure) -> str:
    """Dollars, or a dash where they are not known."""
    known = amount.usd if isinstance(amount, Figure) else amount
    return UNKNOWN if known is None else format_usd(known)


def period(statement: Statement) -> str:
    """`August 2026`, or `all time`."""
    return "all time" if statement.period is None else statement.period.label


def about(statement: Statement) -> str:
    """Whom it is about: `acme`, or `all customers`."""
    return statement.customer or "all customers"


def sentence(statement: Statement) -> str:
    """What a person in a hurry wants to know."""
    when = "" if statement.period is None else f" in {statement.period.label}"
    whom = statement.customer or _count(
        sum(customer_cost.runs > 0 for customer_cost in statement.customers), "customer"
    )
    total = statement.total
    if not total.runs:
        of = f" for {statement.customer}" if statement.customer else ""
        return f"Nothing was spent{of}{when}: the ledger has no charge."
    figures = total.figures
    start = f"{usd(figures.spent_usd)} was spent for {whom}{when} on {_count(total.runs, 'run')}"
    return f"{start}{_against_budget(total)}{_wasted(figures)}{_saved(statement)}."


def _against_budget(total: CustomerCost) -> str:
    budget, left = total.figures.budget.usd, total.figures.left.usd
    if budget is None or left is None:
        return ", whose budgets are not all known" if total.runs > 1 else ", of an unknown budget"
    of = format_usd(budget) + (f" ({note})" if (note := total.figures.budget.note) else "")
    if left < 0:
        return f", {format_usd(abs(left))} above a budget of {of}"
    return f", with {format_usd(left)} left of a budget of {of}"


def _wasted(figures: Figures) -> str:
    if not figures.wasted_usd:
        return "; nothing was wasted"
    of = share_wasted(figures)
    return f"; {format_usd(figures.wasted_usd)} was wasted" + (f" ({of})" if of else "")


def _saved(statement: Statement) -> str:
    if not any(line.market == "spot" for run in statement.runs for line in run.lines):
        return ""
    saving = statement.total.figures.saving.usd
    if saving is None:
        return ", and what spot machines saved is not known"
    if saving < 0:
        return f", and spot machines cost {format_usd(abs(saving))} more than on demand"
    return f", and spot machines saved {format_usd(saving)} against on demand"


def share_wasted(figures: Figures) -> str:
    """`9.7 %`; empty where there is nothing that it could be a share of."""
    if not 0 <= figures.wasted_usd <= figures.spent_usd or not figures.spent_usd:
        return ""
    return words.percent(float(figures.wasted_usd / figures.spent_usd))


def notes(statement: Statement) -> list[str]:
    """Why what is not known is not, and what the rest stands on."""
    customer_costs = statement.customers
    unknown = [
        (customer_cost.name, name, of.note)
        for customer_cost in customer_costs
        for name, figure in FIGURES
        if (of := figure(customer_cost.figures)).usd is None
    ]
    bought = [
        f"{customer_cost.name}, {name}: {of.note}."
        for customer_cost in customer_costs
        for name, figure in FIGURES[-2:]
        if (of := figure(customer_cost.figures)).usd is not None
    ]
    of_runs = [note for run in statement.runs for note in _of_run(run, statement)]
    return not_known(unknown) + _of_month(statement) + bought + of_runs


def _of_month(statement: Statement) -> list[str]:
    """Whose budget is a month's limit, and where those are left out."""
    limited = [
        (customer_cost.name, customer_cost.figures.budget) for customer_cost in statement.customers
    ]
    of_all = statement.total.figures.budget
    if of_all.note not in [budget.note for _, budget in limited]:
        limited.append(("all", of_all))
    found = [
        f"{name}, budget: {usd(budget)} is {budget.note}, less than the budgets of the runs."
        for name, budget in limited
        if budget.usd is not None and budget.note
    ]
    lefts = [customer_cost.figures.left for customer_cost in statement.customers]
    rest_on = dict.fromkeys(left.note for left in lefts if left.usd is not None and left.note)
    return [*found, *(f"left: {note}." for note in rest_on)]


def not_known(found: Iterable[tuple[str, str, str]]) -> list[str]:
    """(customer, figure, reason) as sentences: of a reason the figures, of those the customers."""
    figures: dict[tuple[str, str], list[str]] = {}
    for customer, figure, reason in found:
        figures.setdefault((customer, reason), []).append(figure)
    customers: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (customer, reason), names in figures.items():
        customers.setdefault((tuple(names), reason), []).append(customer)
    return [
        f"{_listed(who)}, {_listed(names)} {UNKNOWN} not known: {reason}."
        for (names, reason), who in customers.items()
    ]


def _of_run(run: RunCost, statement: Statement) -> list[str]:
    found = []
    if run.outside_usd:
        found.append(
            f"Run {run.run} of {run.customer} spent {format_usd(run.outside_usd)} outside "
            f"{period(statement)}; what is left of its budget counts that too."
        )
    if run.old_prices:
        found.append(
            f"Run {run.run} of {run.customer} was charged {format_usd(run.old_usd)} at old prices: "
            f"{'; '.join(run.old_prices)}."
        )
    left = run.figures.left.usd
    if left is not None and left < 0:
        found.append(
            f"Run {run.run} of {run.customer} is {format_usd(abs(left))} above its budget of "
            f"{usd(run.figures.budget)}."
        )
    return found


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
