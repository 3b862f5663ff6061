"""The documents on a site, params.yaml and the ledger -> how every customer stands.

Nothing here ends a page: what cannot be read is unknown, and the notes say why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from turbo_vaed.config import load
from turbo_vaed.config.schema import CUSTOMER_NAME, Params, ScheduleParams
from turbo_vaed.costs.ledger import ChargeGroup, Ledger
from turbo_vaed.costs.money import total_usd
from turbo_vaed.costs.months import Month
from turbo_vaed.costs.open_runs import OpenRun, OpenRuns
from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.report.fleet.alarms import KINDS, Alarm, held
from turbo_vaed.report.fleet.record import (
    Champion,
    Document,
    LastRun,
    Skipped,
    customer_of,
    decoded,
)
from turbo_vaed.report.fleet.status import Plan, Status

_TONES = {"bad": 0, "warn": 1, "": 2}


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """A customer of params.yaml with a schedule, and when a run of it was last seen."""

    customer: str
    params: ScheduleParams
    seen_at: datetime | None


Plans = tuple[Mapping[str, Plan], Sequence[str]]
"""Customer -> its plan, and notes on what is not known of them."""
FindPlans = Callable[[Sequence[Scheduled], datetime], Plans]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A customer, and what is wrong with it."""

    status: Status
    alarms: tuple[Alarm, ...]

    @property
    def tone(self) -> str:
        """That of the gravest alarm; empty where none is held."""
        return self.alarms[0].kind.tone if self.alarms else ""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All customers, those that need attention first."""

    now: datetime
    rows: tuple[Row, ...]
    month: Month
    month_usd: Decimal | None
    """Of all customers; None where the ledger does not answer."""
    month_limit_usd: Decimal | None
    """The widest `budget.total_month_usd`: until there one of them may spend; None without one."""
    notes: tuple[str, ...]

    @property
    def alarmed(self) -> tuple[Row, ...]:
        """Customers with an alarm."""
        return tuple(row for row in self.rows if row.alarms)

    @property
    def running(self) -> tuple[Row, ...]:
        """Customers whose run goes on."""
        states = ("running", "aborting")
        open_ = [(row, row.status.open_run) for row in self.rows]
        return tuple(row for row, run in open_ if run is not None and run.state in states)


@dataclass(kw_only=True)
class _Documents:
    last: dict[str, LastRun] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    champions: dict[str, Champion] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Money:
    by_customer: Mapping[str, Decimal]
    by_run: Mapping[str, Decimal]


def gather(
    root: Path,
    ledger_url: str,
    documents: Mapping[str, bytes],
    *,
    find_plans: FindPlans,
    now: datetime | None = None,
) -> Fleet:
    """Every customer of params.yaml, and those that only have documents.

    Args:
        documents: name -> content, of what lies in `record.FOLDER`.
        find_plans: when the customers run next, as whoever runs them says.

    Raises:
        UserError: params.yaml cannot be read.
    """
    now = now or datetime.now(UTC)
    notes: list[str] = []
    files = load.read(root)
    listed = [name for name in files.customers if isinstance(name, str)]
    params = {name: _params(files, name) for name in listed}
    found = _decoded(documents, notes)
    month = Month.of(now)
    money, open_runs = _from_ledger(ledger_url, month, notes)
    names = list(dict.fromkeys([*listed, *sorted(found.last), *sorted(open_runs)]))
    bare = [
        Status(
            customer=name,
            now=now,
            is_listed=name in params,
            last=found.last.get(name),
            skipped=found.skipped.get(name),
            champion=found.champions.get(name),
            open_run=open_runs.get(name),
            open_usd=_of_open_run(money, open_runs.get(name)),
            month_usd=None if money is None else money.by_customer.get(name, Decimal(0)),
            problem=of if isinstance(of := params.get(name, ""), str) else "",
            use_case=of.use_case if isinstance(of, Params) else "",
            budget=of.budget if isinstance(of, Params) else None,
        )
        for name in names
    ]
    plans, remarks = find_plans(
        [
            Scheduled(customer=one.customer, params=schedule, seen_at=one.seen_at)
            for one in bare
            if (schedule := _schedule(params.get(one.customer))) is not None
        ],
        now,
    )
    statuses = [replace(one, plan=plans.get(one.customer)) for one in bare]
    rows = [Row(status=status, alarms=held(status)) for status in statuses]
    valid = [one for one in params.values() if isinstance(one, Params)]
    limits = [one.budget.total_month_usd for one in valid]
    known = [limit for limit in limits if limit is not None]
    return Fleet(
        now=now,
        rows=tuple(sorted(rows, key=_order)),
        month=month,
        month_usd=None if money is None else total_usd(money.by_customer.values()),
        month_limit_usd=max(known) if known and len(known) == len(limits) else None,
        notes=(*notes, *remarks),
    )


def _order(row: Row) -> tuple[int, int, bool, str]:
    """What needs attention first, by tone and kind of alarm; then what runs, then the rest."""
    status = row.status
    kind = list(KINDS).index(row.alarms[0].name) if row.alarms else len(KINDS)
    rank = 3 if not status.is_listed and not row.alarms else _TONES[row.tone]
    return rank, kind, status.open_run is None, status.customer


def _params(files: load.ConfigFiles, name: str) -> Params | str:
    try:
        return load.resolve(files, name).params()
    except UserError as error:
        return " ".join(str(error).split())


def _schedule(found: Params | str | None) -> ScheduleParams | None:
    return found.schedule if isinstance(found, Params) else None


def _decoded(documents: Mapping[str, bytes], notes: list[str]) -> _Documents:
    found = _Documents()
    for name, content in sorted(documents.items()):
        customer = customer_of(name)[0]
        if CUSTOMER_NAME.fullmatch(customer) is None:
            notes.append(f"{name} is of no customer and is left out")
            continue
        try:
            document: Document = decoded(name, content)
        except CorruptFile as error:
            notes.append(str(error))
            continue
        if isinstance(document, LastRun):
            found.last[customer] = document
        elif isinstance(document, Skipped):
            found.skipped[customer] = document
        else:
            found.champions[customer] = document
    return found


def _from_ledger(
    url: str, month: Month, notes: list[str]
) -> tuple[_Money | None, dict[str, OpenRun]]:
    """What was spent in the month, and the runs that have not ended."""
    try:
        with OpenRuns.open(url) as open_runs:
            going_on = {one.customer: one for one in open_runs.all() if one.state != "ended"}
        with Ledger.open(url) as ledger:
            groups = ledger.grouped(since=month.since, until=month.until)
    except (Fault, UserError) as error:
        notes.append(f"spending, and which runs go on, are unknown: {error}")
        return None, {}
    return _summed(groups), going_on


def _summed(groups: Iterable[ChargeGroup]) -> _Money:
    by_customer: dict[str, list[Decimal]] = defaultdict(list)
    by_run: dict[str, list[Decimal]] = defaultdict(list)
    for group in groups:
        by_customer[group.customer].append(group.amount_usd)
        by_run[group.run].append(group.amount_usd)
    return _Money(
        by_customer={name: total_usd(found) for name, found in by_customer.items()},
        by_run={name: total_usd(found) for name, found in by_run.items()},
    )


def _of_open_run(money: _Money | None, run: OpenRun | None) -> Decimal | None:
    if money is None or run is None or not run.run:
        return None
    return money.by_run.get(run.run, Decimal(0))
