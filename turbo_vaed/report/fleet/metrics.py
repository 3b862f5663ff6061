"""The fleet as metrics for Prometheus, in the text format of node_exporter's textfile collector.

Moments are Unix times, not ages: the file stays true while it waits to be collected, and an alert
takes the difference to `time()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turbo_vaed.report.fleet.alarms import KINDS
from turbo_vaed.report.fleet.facts import Fleet
from turbo_vaed.report.fleet.status import Status

OUTCOMES = (
    "Passed", "GateFailed", "Inconclusive", "Refused", "Fault", "Stopped", "Unchanged",
    "Unrecorded", "Never",
)  # fmt: skip
"""What `Status.outcome` may be."""
_P = "turbo_vaed"
_Value = float | int | Decimal | bool | datetime | None


def exposition(fleet: Fleet) -> str:
    """The metrics as text; what is not known has no sample."""
    registry = CollectorRegistry()
    registry.register(_Collected(fleet))
    return generate_latest(registry).decode()


class _Collected(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        fleet = self._fleet
        statuses = [row.status for row in fleet.rows if row.status.is_listed]
        yield _one("written_timestamp_seconds", "When this file was written.", fleet.now)
        yield _one("customers", "Customers in params.yaml.", len(statuses))
        yield _one("month_usd", "Spent by all customers this month (UTC).", fleet.month_usd)
        yield _one(
            "month_limit_usd", "What all may spend in a month together.", fleet.month_limit_usd
        )
        yield from _per_customer(statuses)
        yield _champions(statuses)
        yield _outcomes(statuses)
        yield _alarms(fleet)
        yield from _gate(statuses)


_HELP = {
    "last_run_timestamp_seconds": "When the last run ended.",
    "last_run_duration_seconds": "How long the last run took.",
    "last_run_usd": "What the whole last run has cost.",
    "run_budget_usd": "What a run may cost.",
    "customer_month_usd": "Spent for the customer this month (UTC).",
    "customer_month_budget_usd": "What the customer's runs may spend in a month.",
    "run_open": "1 while a run of the customer goes on.",
    "run_dead": "1 where a run died and is not settled yet.",
    "run_heartbeat_timestamp_seconds": "When the run that goes on, or died, was last seen.",
    "next_run_timestamp_seconds": "When the next run is due.",
}
"""Of each customer."""


def _values(status: Status) -> dict[str, _Value]:
    last, run, budget, plan = status.last, status.open_run, status.budget, status.plan
    is_dead = run is not None and run.state == "dead"
    return {
        "last_run_timestamp_seconds": None if last is None else last.ended,
        "last_run_duration_seconds": None if last is None else last.seconds,
        "last_run_usd": None if last is None else last.usd,
        "run_budget_usd": None if budget is None else budget.run_usd,
        "customer_month_usd": status.month_usd,
        "customer_month_budget_usd": None if budget is None else budget.customer_month_usd,
        "run_open": run is not None and not is_dead,
        "run_dead": is_dead,
        "run_heartbeat_timestamp_seconds": None if run is None else run.seen_at,
        "next_run_timestamp_seconds": None if plan is None else plan.next_at,
    }


def _one(name: str, help_: str, value: _Value) -> Metric:
    family = GaugeMetricFamily(f"{_P}_{name}", help_)
    if value is not None:
        family.add_metric([], _number(value))
    return family


def _per_customer(statuses: Iterable[Status]) -> Iterable[Metric]:
    families = {
        name: GaugeMetricFamily(f"{_P}_{name}", help_, labels=["customer"])
        for name, help_ in _HELP.items()
    }
    for status in statuses:
        for name, value in _values(status).items():
            if value is not None:
                families[name].add_metric([status.customer], _number(value))
    return families.values()


def _number(value: float | int | Decimal | bool | datetime) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _champions(statuses: Iterable[Status]) -> Metric:
    family = InfoMetricFamily(f"{_P}_champion", "The champion's version.", labels=["customer"])
    for status in statuses:
        if status.champion is not None and status.champion.version is not None:
            family.add_metric([status.customer], {"version": str(status.champion.version)})
    return family


def _outcomes(statuses: Iterable[Status]) -> Metric:
    family = GaugeMetricFamily(
        f"{_P}_outcome",
        "1 for what the last run came to, 0 for what it did not.",
        labels=["customer", "outcome"],
    )
    for status in statuses:
        for outcome in OUTCOMES:
            family.add_metric([status.customer, outcome], float(status.outcome == outcome))
    return family


def _alarms(fleet: Fleet) -> Metric:
    family = GaugeMetricFamily(
        f"{_P}_alarm", "1 for an alarm that is held.", labels=["customer", "alarm"]
    )
    for row in fleet.rows:
        names = {alarm.name for alarm in row.alarms}
        for name in KINDS:
            if row.status.is_listed or name in names:
                family.add_metric([row.status.customer, name], float(name in names))
    return family


def _gate(statuses: list[Status]) -> Iterable[Metric]:
    labels = ["customer", "check", "unit"]
    measured = GaugeMetricFamily(
        f"{_P}_gate_measured", "What the gate measured of the last package.", labels=labels
    )
    limits = GaugeMetricFamily(f"{_P}_gate_limit", "What the gate requires.", labels=labels)
    for status in statuses:
        for check in () if status.last is None else status.last.checks:
            names = [status.customer, check.name, check.unit]
            limits.add_metric(names, check.limit)
            if check.measured is not None:
                measured.add_metric(names, check.measured)
    return measured, limits
