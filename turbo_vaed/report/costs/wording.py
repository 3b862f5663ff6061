"""The wording of cost reports: the sentence, the notes, the columns, and figures as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from turbo_vaed.costs.customer_costs import CustomerCost, Figure, Figures, RunCost, Statement
from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import formatting

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
"""Figures that may be unknown, by their names in notes."""
SUMMARY_COLUMNS = ("runs", "spent", "budget", "left", "saved by spot", "wasted",
                   "per kept step", "per dB")  # fmt: skip
PORTFOLIO_COLUMNS = {"name": "customer", "use_case": "use case", "verdict": "last verdict",
                     "best": "best dB", "per_db": "per dB", "saves": "saves a month",
                     "pays_back": "pays back in"}  # fmt: skip
"""Of a terminal, where they differ from the keys."""


def usd(amount: Decimal | Figure) -> str:
    """Dollars, or a dash where they are unknown."""
    known = amount.usd if isinstance(amount, Figure) else amount
    return UNKNOWN if known is None else format_usd(known)


def period(statement: Statement) -> str:
    """`August 2026`, or `all time`."""
    return "all time" if statement.period is None else statement.period.label


def about(statement: Statement) -> str:
    """The subject: `acme`, or `all customers`."""
    return statement.customer or "all customers"


def sentence(statement: Statement) -> str:
    """The statement in a sentence or two, for a person in a hurry."""
    when = "" if statement.period is None else f" in {statement.period.label}"
    customers = sum(customer_cost.runs > 0 for customer_cost in statement.customers)
    whom = statement.customer or formatting.counted(customers, "customer")
    total = statement.total
    if not total.runs:
        name = f" for {statement.customer}" if statement.customer else ""
        return f"Nothing was spent{name}{when}: the ledger has no charge."
    figures = total.figures
    runs = formatting.counted(total.runs, "run")
    start = f"{usd(figures.spent_usd)} was spent on {runs} for {whom}{when}"
    return f"{start}{_against_budget(total)}; {_wasted(figures)}.{_saved(statement)}"


def _against_budget(total: CustomerCost) -> str:
    budget, left = total.figures.budget.usd, total.figures.left.usd
    if budget is None or left is None:
        return "; not all budgets are known" if total.runs > 1 else "; its budget is unknown"
    limit = format_usd(budget) + (f" ({note})" if (note := total.figures.budget.note) else "")
    if left < 0:
        return f", {format_usd(abs(left))} over the budget of {limit}"
    return f", with {format_usd(left)} left of the budget of {limit}"


def _wasted(figures: Figures) -> str:
    if not figures.wasted_usd:
        return "nothing was wasted"
    share = share_wasted(figures)
    return f"{format_usd(figures.wasted_usd)} was wasted" + (f" ({share})" if share else "")


def _saved(statement: Statement) -> str:
    if not any(line.market == "spot" for run in statement.runs for line in run.lines):
        return ""
    saving = statement.total.figures.saving.usd
    if saving is None:
        return " What spot machines saved is unknown."
    if saving < 0:
        return f" Spot machines cost {format_usd(abs(saving))} more than on-demand ones."
    return f" Spot machines saved {format_usd(saving)} compared with on-demand ones."


def share_wasted(figures: Figures) -> str:
    """`9.7 %`; empty where there is nothing that it could be a share of."""
    if not 0 <= figures.wasted_usd <= figures.spent_usd or not figures.spent_usd:
        return ""
    return formatting.percent(float(figures.wasted_usd / figures.spent_usd))


def notes(statement: Statement) -> list[str]:
    """Why some figures are unknown, and what the others are based on."""
    customer_costs = statement.customers
    unknown = [
        (customer_cost.name, name, of.note)
        for customer_cost in customer_costs
        for name, figure in FIGURES
        if (of := figure(customer_cost.figures)).usd is None
    ]
    bought = [
        f"{_capital(name)} of {customer_cost.name}: {of.note}."
        for customer_cost in customer_costs
        for name, figure in FIGURES[-2:]
        if (of := figure(customer_cost.figures)).usd is not None
    ]
    of_runs = [note for run in statement.runs for note in _of_run(run, statement)]
    return unknown_figures(unknown) + _of_month(statement) + bought + of_runs


def _of_month(statement: Statement) -> list[str]:
    """Budgets that are a month's limit, and where such limits are left out."""
    limited = [
        (customer_cost.name, customer_cost.figures.budget) for customer_cost in statement.customers
    ]
    of_all = statement.total.figures.budget
    if of_all.note not in [budget.note for _, budget in limited]:
        limited.append(("all", of_all))
    found = [
        f"Budget of {name}: {usd(budget)} ({budget.note}), less than the budgets of the runs."
        for name, budget in limited
        if budget.usd is not None and budget.note
    ]
    lefts = [customer_cost.figures.left for customer_cost in statement.customers]
    rest_on = dict.fromkeys(left.note for left in lefts if left.usd is not None and left.note)
    return [*found, *(f"Left: {note}." for note in rest_on)]


def unknown_figures(found: Iterable[tuple[str, str, str]]) -> list[str]:
    """(customer, figure, reason) as sentences, one for each set of figures and reason."""
    figures: dict[tuple[str, str], list[str]] = {}
    for customer, figure, reason in found:
        figures.setdefault((customer, reason), []).append(figure)
    customers: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (customer, reason), names in figures.items():
        customers.setdefault((tuple(names), reason), []).append(customer)
    return [
        f"Unknown for {_listed(who)}: {_listed(names)} ({reason})."
        for (names, reason), who in customers.items()
    ]


def _of_run(run: RunCost, statement: Statement) -> list[str]:
    found = []
    if run.outside_usd:
        found.append(
            f"Run {run.run} of {run.customer} spent {format_usd(run.outside_usd)} outside "
            f"{period(statement)}, which counts against its budget too."
        )
    if run.old_prices:
        found.append(
            f"Run {run.run} of {run.customer} was charged {format_usd(run.old_usd)} at old prices: "
            f"{'; '.join(run.old_prices)}."
        )
    left = run.figures.left.usd
    if left is not None and left < 0:
        found.append(
            f"Run {run.run} of {run.customer} is {format_usd(abs(left))} over its budget of "
            f"{usd(run.figures.budget)}."
        )
    return found


def runs_left_out(count: int, spent: Decimal) -> str:
    """Below the detail of a terminal that does not list all runs."""
    return (
        f"Not listed: {formatting.counted(count, 'more run')}, which spent {format_usd(spent)}. "
        "Use --format csv for all of them, --customer for those of one customer."
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        names = [*names[: MOST_NAMED - 1], f"{len(names) - MOST_NAMED + 1} others"]
    return formatting.enumerated(names)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
