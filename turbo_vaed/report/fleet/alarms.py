"""Held alarms: what makes a customer one that an operator has to look at.

This is the one list: the fleet page, `turbo-vaed fleet`, the metrics and docs/incidents.md go by
it. An alarm is held until its cause is gone, not until somebody has seen it: a customer whose gate
failed stays on the list while its runs end as Unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from turbo_vaed.costs.money import format_usd
from turbo_vaed.report import formatting
from turbo_vaed.report.fleet.status import Status
from turbo_vaed.report.wording import CHECK_LABELS

Tone = Literal["bad", "warn"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What can be wrong."""

    title: str
    tone: Tone
    todo: str
    """What to do first; docs/incidents.md has the rest, in the section of the kind's name."""


KINDS = {
    "dead-run": Kind(
        title="Dead run",
        tone="bad",
        todo="look at its machine; turbo-vaed runs settle, or the next run, settles it",
    ),
    "fault": Kind(title="Fault", tone="bad", todo="read the error; mend it and run again"),
    "gate-failed": Kind(
        title="Gate failed", tone="bad", todo="read the checks in the report; the champion stays"
    ),
    "missed": Kind(
        title="Missed",
        tone="bad",
        todo="is a worker running? prefect worker start --pool turbo-vaed",
    ),
    "params": Kind(title="Params not valid", tone="bad", todo="turbo-vaed config show CUSTOMER"),
    "refused": Kind(
        title="Refused", tone="warn", todo="read why: a budget, or data that are not good enough"
    ),
    "inconclusive": Kind(
        title="Inconclusive",
        tone="warn",
        todo="run again on a quieter machine, or with more videos",
    ),
    "budget": Kind(
        title="Budget nearly spent", tone="warn", todo="raise the limit, or expect the next refusal"
    ),
}
"""In the order of the list."""
_BY_OUTCOME = {
    "Fault": "fault",
    "GateFailed": "gate-failed",
    "Inconclusive": "inconclusive",
    "Refused": "refused",
}


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One thing that is wrong with one customer."""

    name: str
    """Its key in `KINDS`."""
    text: str

    @property
    def kind(self) -> Kind:
        """What that means."""
        return KINDS[self.name]


def held(status: Status) -> tuple[Alarm, ...]:
    """The alarms of a customer, the gravest first. One that is no longer in params.yaml has only
    those of a run that goes on."""
    checks: list[Callable[[Status], Alarm | None]] = [_dead_run]
    if status.is_listed:
        checks += [_outcome, _missed, _params, _budget]
    found = [alarm for check in checks if (alarm := check(status)) is not None]
    order = list(KINDS)
    return tuple(sorted(found, key=lambda alarm: order.index(alarm.name)))


def _dead_run(status: Status) -> Alarm | None:
    run, age = status.open_run, status.heartbeat_age
    if run is None or age is None or run.state != "dead":
        return None
    since = formatting.seconds(age.total_seconds())
    where = f"{run.holder} at {run.step or 'its start'}"
    return Alarm(name="dead-run", text=f"{where}, last seen {since} ago")


def _outcome(status: Status) -> Alarm | None:
    name = _BY_OUTCOME.get(status.outcome)
    if name is None or status.last is None:
        return None
    failed = [CHECK_LABELS.get(c.name, c.name) for c in status.last.checks if c.result != "passes"]
    is_of_earlier = status.last.outcome == "Unchanged"  # its sentence says that nothing was done
    text = f"not passed: {', '.join(failed)}" if is_of_earlier and failed else status.last.sentence
    return Alarm(name=name, text=text)


def _missed(status: Status) -> Alarm | None:
    at = None if status.plan is None else status.plan.missed_at
    if at is None or status.open_run is not None:
        return None
    return Alarm(name="missed", text=f"a run was due at {at:%Y-%m-%d %H:%M} UTC and none began")


def _params(status: Status) -> Alarm | None:
    return Alarm(name="params", text=status.problem) if status.problem else None


def warn_share(status: Status) -> Decimal:
    """The share of a limit from which on spending is a warning."""
    return Decimal(1 if status.budget is None else str(status.budget.warn_share))


def _budget(status: Status) -> Alarm | None:
    if status.budget is None:
        return None
    for spend in status.spends:
        is_held = spend.is_month or status.open_run is not None  # a run that is over is paid for
        if is_held and spend.share >= warn_share(status):
            whose = "this month" if spend.is_month else "by the run"
            text = (
                f"{format_usd(spend.usd)} of {format_usd(spend.limit_usd)} spent {whose}, "
                f"{formatting.percent(float(spend.share), 0)}"
            )
            return Alarm(name="budget", text=text)
    return None
