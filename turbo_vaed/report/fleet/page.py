"""The fleet as one self-contained HTML page, and as rows for a terminal."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from turbo_vaed.config.money import BudgetParams
from turbo_vaed.costs.money import format_usd
from turbo_vaed.costs.open_runs import OpenRun
from turbo_vaed.report import formatting
from turbo_vaed.report.costs.wording import UNKNOWN
from turbo_vaed.report.fleet.alarms import KINDS, Alarm, warn_share
from turbo_vaed.report.fleet.facts import Fleet, Row
from turbo_vaed.report.fleet.record import LastRun
from turbo_vaed.report.fleet.status import Spend, Status
from turbo_vaed.report.templating import environment, source

LABELS = {
    "GateFailed": "Gate failed",
    "Unrecorded": "Not recorded",
    "Never": "Never run",
}
"""Of outcomes whose name is not a word."""
_TONES = {
    "Passed": "good",
    "GateFailed": "bad",
    "Fault": "bad",
    "Inconclusive": "warn",
    "Refused": "warn",
}
NOT_MEASURED = "not measured"
"""Of drift: nothing compares a customer's new videos with those that the champion was made from."""
_MOST_CHARACTERS = 200
"""Of an alarm's text in the table; the report has all of it."""
_MOST_NAMED = 12
"""Customers of one kind of alarm."""


def fleet_page(fleet: Fleet) -> str:
    """The page as text; every name in it is escaped, and it loads nothing."""
    from markupsafe import Markup

    found = environment()
    style = "\n".join(source(found, name) for name in ("style.css", "fleet.css"))
    script = source(found, "fleet.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return found.get_template("fleet.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        script_sha256=Markup(digest),
        **_view(fleet),
    )


def sentence(fleet: Fleet) -> str:
    """The headline: how many customers need attention, and how many runs go on."""
    customers = [row for row in fleet.rows if row.status.is_listed]
    running = formatting.counted(len(fleet.running), "run")
    end = f"; {running} {'goes' if len(fleet.running) == 1 else 'go'} on." if fleet.running else "."
    count, everyone = len(fleet.alarmed), formatting.counted(len(customers), "customer")
    if not customers:
        return "There is no customer in params.yaml yet."
    if not count:
        return f"No alarm is held for {everyone}{end}"
    return f"{count} of {everyone} {'needs' if count == 1 else 'need'} attention{end}"


def terminal_rows(fleet: Fleet) -> list[dict[str, Any]]:
    """A row per customer, those that need attention first."""
    return [
        {
            "customer": row.status.customer,
            "last run": _outcome(row.status),
            "ended": _moment(row.status.ended_at),
            "champion": _champion(row.status),
            "spent": _spent(row.status),
            "next run": _next(row.status),
            "drift": NOT_MEASURED,
            "alarms": "; ".join(
                f"{alarm.kind.title}: {_short(alarm)}" for alarm in row.alarms
            ) or None,
        }
        for row in fleet.rows
    ]  # fmt: skip


def document(fleet: Fleet) -> list[dict[str, Any]]:
    """As `terminal_rows`, for programs: times in ISO 8601, money as text, null is not known."""
    return [_document(row) for row in fleet.rows]


def _document(row: Row) -> dict[str, Any]:
    status, last, run = row.status, row.status.last, row.status.open_run
    plan, champion, budget = status.plan, status.champion, status.budget
    return {
        "customer": status.customer,
        "in_params": status.is_listed,
        "use_case": status.use_case or None,
        "outcome": status.outcome,
        "last_run": None
        if last is None
        else {
            "run": last.run or None,
            "state": last.outcome,
            "sentence": last.sentence,
            "began": _iso(last.began),
            "ended": _iso(last.ended),
            "usd": None if last.usd is None else format(last.usd, "f"),
            "page": last.page or None,
            "report": last.report or None,
        },
        "open_run": None
        if run is None
        else {
            "run": run.run or None,
            "state": run.state,
            "step": run.step or None,
            "by": str(run.holder),
            "seen": _iso(run.seen_at),
        },
        "champion_version": None if champion is None else champion.version,
        "month_usd": None if status.month_usd is None else format(status.month_usd, "f"),
        "month_budget_usd": None
        if budget is None or budget.customer_month_usd is None
        else format(budget.customer_month_usd, "f"),
        "run_budget_usd": None if budget is None else format(budget.run_usd, "f"),
        "next_run": None if plan is None else _iso(plan.next_at),
        "is_paused": None if plan is None else plan.is_paused,
        "drift": None,
        "alarms": [
            {"alarm": alarm.name, "tone": alarm.kind.tone, "text": alarm.text}
            for alarm in row.alarms
        ],
    }


def _view(fleet: Fleet) -> dict[str, Any]:
    return {
        "sentence": sentence(fleet),
        "written": fleet.now,
        "written_text": f"{fleet.now:%d %B %Y, %H:%M} UTC",
        "month": fleet.month.label,
        "meter": _month_meter(fleet),
        "tiles": _tiles(fleet),
        "kinds": _kinds(fleet),
        "rows": [_row(row, fleet.now) for row in fleet.rows],
        "notes": fleet.notes,
        "drift": NOT_MEASURED,
        "unknown": UNKNOWN,
    }


@dataclass(frozen=True, kw_only=True)
class _Tile:
    name: str
    value: str
    caption: str
    tone: str = ""


def _tiles(fleet: Fleet) -> list[_Tile]:
    listed = [row.status for row in fleet.rows if row.status.is_listed]
    outcomes = Counter(status.outcome for status in listed)
    grave = sum(row.tone == "bad" for row in fleet.rows)
    due = [(one.plan.next_at, one) for one in listed if one.plan and one.plan.next_at]
    first = min(due, key=lambda one: one[0], default=None)
    paused = sum(one.plan is not None and one.plan.is_paused for one in listed)
    return [
        _Tile(
            name="Need attention",
            value=str(len(fleet.alarmed)),
            caption=f"{grave} of them in red" if fleet.alarmed else "no alarm is held",
            tone="bad" if grave else "warn" if fleet.alarmed else "good",
        ),
        _Tile(
            name="Passed",
            value=str(outcomes["Passed"]),
            caption=f"of {formatting.counted(len(listed), 'customer')}; "
            f"{outcomes['Never']} never ran",
        ),
        _Tile(
            name="Running now",
            value=str(len(fleet.running)),
            caption=", ".join(row.status.customer for row in fleet.running[:3])
            + ("…" if len(fleet.running) > 3 else "")
            or "no run goes on",
        ),
        _Tile(
            name=f"Spent in {fleet.month.since:%B}",
            value=UNKNOWN if fleet.month_usd is None else format_usd(fleet.month_usd),
            caption="the ledger does not answer"
            if fleet.month_usd is None
            else "no limit for all together"
            if fleet.month_limit_usd is None
            else f"of {format_usd(fleet.month_limit_usd)}",
        ),
        _Tile(
            name="Next run",
            value=UNKNOWN if first is None else f"{first[0]:%H:%M}",
            caption=("no schedule" if first is None else f"{first[0]:%d %b}, {first[1].customer}")
            + (f"; {paused} paused" if paused else ""),
        ),
    ]


def _month_meter(fleet: Fleet) -> dict[str, Any] | None:
    if fleet.month_usd is None or fleet.month_limit_usd is None:
        return None
    spend = Spend(usd=fleet.month_usd, limit_usd=fleet.month_limit_usd, is_month=True)
    return {
        **_bar(spend, warn=BudgetParams().warn_share),
        "spent": f"{format_usd(spend.usd)} spent in {fleet.month.label}",
        "limit": f"limit for all customers: {format_usd(spend.limit_usd)}",
    }


def _bar(spend: Spend, warn: float) -> dict[str, Any]:
    share = float(spend.share)
    return {
        "width": f"{min(1.0, max(0.0, share)) * 100:.1f}",
        "some": share > 0,
        "tone": "bad" if share >= 1 else "warn" if share >= warn else "",
    }


def _kinds(fleet: Fleet) -> list[dict[str, Any]]:
    found = []
    for name, kind in KINDS.items():
        customers = [
            row.status.customer
            for row in fleet.rows
            if any(alarm.name == name for alarm in row.alarms)
        ]
        if customers:
            named = ", ".join(customers[:_MOST_NAMED])
            rest = len(customers) - _MOST_NAMED
            found.append(
                {
                    "name": name,
                    "title": kind.title,
                    "tone": kind.tone,
                    "todo": kind.todo,
                    "count": len(customers),
                    "customers": f"{named} and {rest} more" if rest > 0 else named,
                }
            )
    return found


def _row(row: Row, now: datetime) -> dict[str, Any]:
    status, last = row.status, row.status.last
    spends = status.spends
    return {
        "customer": status.customer,
        "about": status.use_case if status.is_listed else "removed from params.yaml",
        "tone": row.tone,
        "outcome": _outcome(status),
        "outcome_tone": _TONES.get(status.outcome, ""),
        "ended": status.ended_at,
        "ended_text": _moment(status.ended_at),
        "took": None if last is None or last.seconds is None else formatting.seconds(last.seconds),
        "running": _going_on(status.open_run),
        "alarms": [
            {
                "name": alarm.name,
                "title": alarm.kind.title,
                "tone": alarm.kind.tone,
                "text": _short(alarm),
            }
            for alarm in row.alarms
        ],
        "champion": _champion(status),
        "champion_sort": 0
        if status.champion is None or status.champion.version is None
        else status.champion.version,
        "bar": _bar(spends[0], float(warn_share(status))) if spends else None,
        "spent": _spent(status),
        "spent_sort": float(spends[0].share) if spends else 0.0,
        "month": UNKNOWN if status.month_usd is None else format_usd(status.month_usd),
        "next": None if status.plan is None else status.plan.next_at,
        "next_text": _next(status),
        "pages": _pages(last, status.customer),
    }


def _going_on(run: OpenRun | None) -> str | None:
    if run is None or run.state == "dead":
        return None
    state = "stopping" if run.state == "aborting" else "running"
    return f"{state}, at {run.step or 'its start'}"


def _outcome(status: Status) -> str:
    return LABELS.get(status.outcome, status.outcome)


def _champion(status: Status) -> str | None:
    if status.champion is None:
        return None
    return "none" if status.champion.version is None else f"v{status.champion.version}"


def _spent(status: Status) -> str | None:
    if status.spends:
        spend = status.spends[0]
        what = "this month" if spend.is_month else "this run" if status.open_run else "last run"
        return f"{format_usd(spend.usd)} of {format_usd(spend.limit_usd)}, {what}"
    return None if status.month_usd is None else f"{format_usd(status.month_usd)}, this month"


def _next(status: Status) -> str | None:
    if status.plan is None:
        return None
    return "paused" if status.plan.is_paused else _moment(status.plan.next_at)


def _pages(last: LastRun | None, customer: str) -> list[tuple[str, str]]:
    """What a customer's row links: text and address."""
    if last is None:
        return []
    found = []
    if last.page and last.page != last.report:
        found.append(("why not", last.page))
    if last.report:
        found.append(("report", last.report))
    return [*found, ("costs", f"customers/{customer}/costs.html")]


def _short(alarm: Alarm) -> str:
    text = " ".join(alarm.text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1].rstrip()}…"


def _moment(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%d %b %H:%M}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
