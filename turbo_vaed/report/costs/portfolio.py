"""All customers on one page, for ROI reviews: the cost and the outcome of each."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.config import load
from turbo_vaed.costs.customer_costs import CustomerCost
from turbo_vaed.costs.ledger import Ledger
from turbo_vaed.costs.money import format_usd, plain, quantise_usd
from turbo_vaed.errors import CorruptFile, TurboVaedError, UserError
from turbo_vaed.gate import Verdict
from turbo_vaed.report import formatting
from turbo_vaed.report.costs import wording
from turbo_vaed.report.costs.facts import Gathered, History, Known
from turbo_vaed.report.costs.formats import json_document
from turbo_vaed.report.costs.page import charts, head
from turbo_vaed.report.templating import rendered
from turbo_vaed.report.wording import TONES
from turbo_vaed.roi.measured import cost_of_poc, read_roi
from turbo_vaed.roi.roi import Roi

_OF_RETURN = ("monthly_saving_usd", "payback_months", "value_usd")
Returns = Mapping[str, Roi | str]
"""Customer -> the return on its investment, or why it is unknown."""
Champions = Mapping[str, int | str | None]
"""Customer -> the champion's version, None where there is none, or why it is unknown."""


def find_champions(tracking_uri: str, gathered: Gathered) -> dict[str, int | str | None]:
    """The registry's champions, of customers with a verdict: others cannot have one.

    A registry that does not answer is not asked again, and is the reason for all.
    """
    found: dict[str, int | str | None] = {}
    for known in gathered.known:
        if isinstance(known.verdict, str):
            found[known.name] = known.verdict
            continue
        from turbo_vaed.registry.promotion import CHAMPION, versions

        try:
            rows = versions(tracking_uri, known.name)
        except TurboVaedError as error:
            reason = f"the registry does not answer ({error})"
            return {one.name: found.get(one.name, reason) for one in gathered.known}
        champions = [row.version for row in rows if CHAMPION in row.aliases]
        found[known.name] = champions[0] if champions else None
    return found


def find_returns(root: Path, ledger: Ledger, gathered: Gathered) -> dict[str, Roi | str]:
    """What the last run of each customer would return, with the configured assumptions.

    Raises:
        Unreachable: the ledger does not answer.
    """
    found: dict[str, Roi | str] = {}
    files = load.read(root)
    for known in gathered.known:
        if not known.is_listed:
            found[known.name] = "it is no longer in params.yaml"
            continue
        try:
            assumptions = load.resolve(files, known.name).params().roi
            cost = cost_of_poc(ledger, known.name)
            work = root / "work" / known.name
            found[known.name] = read_roi(work, cost=cost, assumptions=assumptions)
        except (UserError, CorruptFile) as error:
            found[known.name] = " ".join(str(error).split())
    return found


def portfolio_page(gathered: Gathered, champions: Champions, returns: Returns) -> str:
    """The page as text."""
    statement = gathered.statement
    rows = table_rows(gathered, champions, returns)
    return rendered(
        "portfolio.html.j2",
        "style.css",
        "charts.css",
        "costs.css",
        **head(statement, "Portfolio"),
        customers=rows[:-1],
        total=rows[-1],
        charts=charts(statement),
        notes=[*wording.notes(statement), *_notes(gathered, champions, returns)],
    )


def sentence(gathered: Gathered) -> str:
    """The headline of the page."""
    return wording.sentence(gathered.statement)


def terminal_rows(
    gathered: Gathered, champions: Champions, returns: Returns
) -> list[dict[str, str]]:
    """`table_rows` for a terminal."""
    left_out = ("tone", "judged")
    return [
        {
            wording.PORTFOLIO_COLUMNS.get(key, key): value
            for key, value in row.items()
            if key not in left_out
        }
        for row in table_rows(gathered, champions, returns)
    ]


def table_rows(gathered: Gathered, champions: Champions, returns: Returns) -> list[dict[str, str]]:
    """A row per customer, as texts, and a last one of all."""
    statement = gathered.statement
    rows = [
        _row(customer_cost, known, champions[known.name], returns[known.name])
        for customer_cost, known in zip(statement.customers, gathered.known, strict=True)
    ]
    passing = sum(row["tone"] == "good" for row in rows)
    judged = sum(bool(row["judged"]) for row in rows)
    with_champion = sum(isinstance(champion, int) for champion in champions.values())
    total = {
        "name": "all",
        "use_case": "",
        **_money(statement.total),
        "verdict": f"{passing} of {judged} pass" if judged else wording.UNKNOWN,
        "tone": "",
        "judged": "",
        "champion": f"{with_champion}",
        "best": "",
        "retention": "",
        "saves": "",
        "pays_back": "",
    }
    return [*rows, total]


def portfolio_document(
    gathered: Gathered, champions: Champions, returns: Returns
) -> dict[str, Any]:
    """As the JSON of a report without its runs, and with each customer's outcome."""
    document = json_document(gathered.statement)
    del document["runs"]
    for row, known in zip(document["summary"], gathered.known, strict=True):
        best = _best(known)
        champion = champions[known.name]
        row |= {
            "use_case": known.use_case,
            "in_params": known.is_listed,
            "verdict": known.verdict.result if isinstance(known.verdict, Verdict) else None,
            "judged_at": known.verdict.created if isinstance(known.verdict, Verdict) else None,
            "champion_version": champion if isinstance(champion, int) else None,
            "best_val_psnr_db": best,
            "psnr_retention": known.retention if isinstance(known.retention, float) else None,
            "return": _return_document(returns[known.name]),
        }
    document["notes"] += _notes(gathered, champions, returns)
    return document


def _row(
    customer_cost: CustomerCost, known: Known, champion: int | str | None, found: Roi | str
) -> dict[str, str]:
    best, verdict = _best(known), known.verdict
    text, tone, judged = wording.UNKNOWN, "", ""
    if isinstance(verdict, Verdict):
        failed = len(verdict.not_passed)
        text, tone = verdict.result, TONES[verdict.result]
        judged = verdict.created[:10]
        judged += f", {failed} of {len(verdict.checks)} checks not passed" if failed else ""
    return {
        "name": known.name,
        "use_case": known.use_case or ("params not valid" if known.is_listed else "removed"),
        **_money(customer_cost),
        "verdict": text,
        "tone": tone,
        "judged": judged,
        "champion": _champion(champion),
        "best": wording.UNKNOWN if best is None else formatting.decibel(best),
        "retention": wording.UNKNOWN
        if isinstance(known.retention, str)
        else formatting.percent(known.retention),
        **_return(found),
    }


def _return(found: Roi | str) -> dict[str, str]:
    """The likely saving a month, and the payback."""
    if isinstance(found, str):
        return {"saves": wording.UNKNOWN, "pays_back": wording.UNKNOWN}
    saving = found.result("monthly_saving_usd").likely
    assert saving is not None, "a payback alone may be never"
    return {
        "saves": format_usd(saving.quantize(Decimal(1)) if abs(saving) >= 100 else saving),
        "pays_back": formatting.months(found.result("payback_months").likely),
    }


def _return_document(found: Roi | str) -> dict[str, str | None] | None:
    """The likely figures as text; a payback of None is never."""
    if isinstance(found, str):
        return None
    likely = {name: found.result(name).likely for name in _OF_RETURN}
    return {k: None if v is None else plain(quantise_usd(v)) for k, v in likely.items()}


def _money(customer_cost: CustomerCost) -> dict[str, str]:
    figures = customer_cost.figures
    return {
        "runs": f"{customer_cost.runs:,}",
        "spent": wording.usd(figures.spent_usd),
        "budget": wording.usd(figures.budget),
        "left": wording.usd(figures.left),
        "wasted": wording.usd(figures.wasted_usd),
        "per_db": wording.usd(figures.per_db),
    }


def _best(known: Known) -> float | None:
    return known.history.best_psnr if isinstance(known.history, History) else None


def _champion(found: int | str | None) -> str:
    if found is None:
        return "none"
    return f"version {found}" if isinstance(found, int) else wording.UNKNOWN


def _notes(gathered: Gathered, champions: Champions, returns: Returns) -> list[str]:
    """Why outcomes are unknown; unknown costs have notes of their own."""
    return wording.unknown_figures(
        (known.name, name, value)
        for known in gathered.known
        for name, value in (
            ("last verdict", known.verdict),
            ("retention", known.retention),
            ("champion", champions[known.name]),
            ("best", known.history),
            ("return", returns[known.name]),
        )
        if isinstance(value, str)
    )
