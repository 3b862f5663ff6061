"""Alarms: automations in Prefect that call a team's webhook where a scheduled run needs somebody.

`schedule sync` makes them. A proactive one finds a run that was due and has not ended, also where
no worker was there to begin it; the others follow the states of flows/states.py, and the event of
flows/budget_alarm.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.budget_alarm import EVENT
from turbo_vaed.settings import Settings

BLOCK = "turbo-vaed-alarms"
"""Prefect's name of the webhook, which it keeps as a secret."""
_STATE = "prefect.flow-run."
_DUE = ("Late", "Pending", "Running")
"""States from which on a run has to end; Prefect calls one late for which no worker has come."""
_WELL = ("Passed", "Unchanged", "Skipped", "Completed", "Stopped", "Cancelled")
_REFUSED = {
    "Refused": "read the reason in the message: raise the budget (turbo-vaed config show CUSTOMER "
    "says where it is set), mend the data, or stop the run that still goes on "
    "(turbo-vaed runs list)",
}
_FAILED = {
    "GateFailed": "read the customer's report: it says which limits the package misses and what "
    "to try; the champion stays as it is",
    "Inconclusive": "read the customer's report; where measuring again may settle it, the next "
    "run does that",
    "Fault": "read the run's logs in Prefect; then turbo-vaed schedule run-now CUSTOMER, which "
    "resumes at the last saved step",
    "Failed": "read the run's logs in Prefect; then turbo-vaed schedule run-now CUSTOMER",
    "TimedOut": "read the run's logs in Prefect; then turbo-vaed schedule run-now CUSTOMER",
    "Crashed": "look whether its worker and its machine live (turbo-vaed runs list); then "
    "turbo-vaed schedule run-now CUSTOMER, which resumes at the last saved step",
}
_NO_END = (
    "if it is late, start a worker (prefect worker start --pool turbo-vaed); if it runs, look at "
    "turbo-vaed runs list and stop it with turbo-vaed runs abort CUSTOMER"
)
_WARNED = (
    "the run goes on and stops by itself at its limit; raise the budget if it is to train longer "
    "(turbo-vaed config show CUSTOMER says where it is set)"
)

_MAINTENANCE = (
    "read the run's logs in Prefect; meanwhile nobody settles runs that died but "
    "turbo-vaed runs settle"
)


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One automation."""

    name: str
    headline: str
    trigger: EventTrigger
    to_do: Mapping[str, str]
    """What an operator does, by the name of the run's state; `""` for any other."""

    @property
    def title(self) -> str:
        """What Prefect calls it."""
        return f"turbo-vaed {self.name}"

    def automation(self, webhook: UUID) -> AutomationCore:
        """As Prefect takes it; `webhook` is the id of a block."""
        return AutomationCore(
            name=self.title,
            description=f"A scheduled run {self.headline}. Made by turbo-vaed schedule sync.",
            tags=["turbo-vaed"],
            trigger=self.trigger,
            actions=[CallWebhook(block_document_id=webhook, payload=_payload(self))],
        )


def alarms(customers: UUID, maintenance: UUID, no_end_hours: float) -> list[Alarm]:
    """All of them, over the runs of these two deployments: an alarm for each run of a customer, and
    at most one a day for maintenance, which runs every quarter of an hour."""
    common = {**_runs_of(customers), "for_each": {"prefect.resource.id"}}
    ended = (*_WELL, *_REFUSED, *_FAILED)
    return [
        Alarm(
            name="no-end",
            headline=f"has not ended {no_end_hours:g} h after it was due",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={_STATE + name for name in _DUE},
                expect={_STATE + name for name in ended},
                within=timedelta(hours=no_end_hours),
                **common,
            ),
            to_do={"": _NO_END},
        ),
        Alarm(
            name="refused",
            headline="was refused",
            trigger=EventTrigger(expect={_STATE + name for name in _REFUSED}, **common),
            to_do=_REFUSED,
        ),
        Alarm(
            name="failed",
            headline="failed",
            trigger=EventTrigger(expect={_STATE + name for name in _FAILED}, **common),
            to_do=_FAILED,
        ),
        Alarm(
            name="warn-share",
            headline="has spent budget.warn_share of what it may spend",
            trigger=EventTrigger(expect={EVENT}, **common),
            to_do={"": _WARNED},
        ),
        Alarm(
            name="maintenance",
            headline="failed",
            trigger=EventTrigger(
                expect={_STATE + name for name in _FAILED},
                within=timedelta(days=1),
                **_runs_of(maintenance),
            ),
            to_do={"": _MAINTENANCE},
        ),
    ]


def _runs_of(deployment: UUID) -> dict[str, Any]:
    return {
        "match": {"prefect.resource.id": f"{_STATE}*"},
        "match_related": {
            "prefect.resource.role": "deployment",
            "prefect.resource.id": f"prefect.deployment.{deployment}",
        },
    }


def sync(
    client: SyncPrefectClient, settings: Settings, *, customers: UUID, maintenance: UUID
) -> None:
    """Bring Prefect's automations to `alarms`, or remove them where no webhook is named. One that
    is as it should be is left alone: with a changed one Prefect forgets which runs it waits for.
    """
    wanted = alarms(customers, maintenance, settings.alarm_hours)
    stored = {one.title: client.read_automations_by_name(one.title) for one in wanted}
    webhook = _webhook(client, settings.alarm_webhook)
    for alarm in wanted:
        found = stored[alarm.title]
        for other in found if webhook is None else found[1:]:
            client.delete_automation(other.id)
        if webhook is None:
            continue
        automation = alarm.automation(webhook)
        if not found:
            client.create_automation(automation)
            continue
        automation.enabled = found[0].enabled  # somebody may have paused it
        if any(getattr(found[0], key) != value for key, value in automation):
            client.update_automation(found[0].id, automation)


def _webhook(client: SyncPrefectClient, url: str | None) -> UUID | None:
    """The block that holds the team's URL; None, and no block, where there is none."""
    if url is None:
        try:
            stored = client.read_block_document_by_name(BLOCK, "webhook")
        except ObjectNotFound:
            return None
        client.delete_block_document(stored.id)
        return None
    headers = SecretDict({"Content-Type": "application/json"})
    saved = Webhook(url=SecretStr(url), headers=headers).save(BLOCK, overwrite=True)
    assert isinstance(saved, UUID), "not awaited"
    return saved


_PAYLOAD = """\
{% set customer = flow_run.parameters.customer or flow_run.name or "" -%}
{% set run %}{% for tag in flow_run.tags -%}
{% if tag.startswith(customer ~ "-") and tag|length == customer|length + 13 %}{{ tag }}{% endif %}
{%- endfor %}{% endset -%}
{% set run, state = run|trim, flow_run.state.name or "" -%}
{% set message = event.payload.message or flow_run.state.message or "" -%}
{% set all = $all -%}
{% set to_do = (all[state] or all[""] or "")|replace("CUSTOMER", customer) -%}
{
  "alarm": $alarm,
  "customer": {{ customer|tojson }},
  "run": {{ run|tojson }},
  "state": {{ state|tojson }},
  "message": {{ message|tojson }},
  "to_do": {{ to_do|tojson }},
  "flow_run": {{ (event.resource.id ~ "")|replace("prefect.flow-run.", "")|tojson }},
  "url": {{ (flow_run|ui_url or "")|tojson }},
  "text": {{ (customer ~ " " ~ $headline ~ " (" ~ state ~ (", run " ~ run if run else "") ~ ")"
    ~ (": " ~ message if message else "") ~ "\\nTo do: " ~ to_do)|tojson }}
}
"""
"""Rendered by Prefect's server. A run's id is a customer's name and twelve digits
(`settings.new_run_id`); a run that ended before it had one has an empty one."""


def _payload(alarm: Alarm) -> str:
    values = {"$alarm": alarm.name, "$headline": alarm.headline, "$all": dict(alarm.to_do)}
    template = _PAYLOAD
    for key, value in values.items():
        template = template.replace(key, json.dumps(value))
    return template
