"""Which EC2 machine a run is started on, and for how long its budget pays for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from flows.admission import ToDo, has_begun
from turbo_vaed.costs import Ledger, PriceBook, format_usd, require_budget_left
from turbo_vaed.costs.choice import Choice
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.planning.ec2_costs import (
    BEFORE_MINUTES,
    overhead_usd,
    read_template,
    volume_gib,
    volume_usd_per_hour,
)
from turbo_vaed.planning.quote import Quote, quote
from turbo_vaed.runtime.progress import format_duration
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The machine of a run, and why it is that one."""

    choice: Choice
    quote: Quote
    minutes: int
    """After which the machine ends itself: what may be spent is spent by then, at the most that
    an hour of it can cost."""
    volume_gib: int
    machine_overhead_usd: Decimal
    """Of what may be spent, for what the machine costs beside its stages: time, and its volume."""
    goes_on: bool = False
    """Whether its training has begun: how many steps are left is known on the machine."""

    @property
    def sentence(self) -> str:
        """What is started, and what it is expected to cost."""
        machine = self.choice.machine
        assert self.choice.usd is not None and self.choice.steps_usd is not None
        assert machine.usd_per_hour is not None
        late = ""
        needed = BEFORE_MINUTES * 60 + self.choice.seconds
        if needed > self.minutes * 60:
            late = f", BEFORE the {format_duration(needed)} that it needs with its set-up"
        cost = f"is expected to cost {format_usd(self.choice.usd)}"
        if self.goes_on:
            cost, late = f"goes on, and {cost} at most", ""
        return (
            f"{machine.instance_type} {machine.market} in {machine.zone}: the run {cost}, "
            f"{format_usd(self.choice.steps_usd)} of it for "
            f"distillation, at {format_usd(machine.usd_per_hour)} an hour; the machine ends itself "
            f"after {self.minutes} minutes at the latest{late}"
        )


def pick(
    workspace: Workspace,
    settings: Settings,
    todo: ToDo,
    *,
    instance_type: str | None = None,
    market: str | None = None,
    book: PriceBook | None = None,
) -> Picked:
    """The EC2 machine on which the customer's run is expected to cost the least.

    A run whose training has begun is not refused for the steps that it would have had before it:
    it goes on from what it saved, and stops by itself.

    Args:
        instance_type: of prices.candidates; any by default.
        market: spot or on-demand; either by default.
        book: of prices; AWS is asked by default.

    Raises:
        UserError: no candidate is of that type and market; as `quote`.
        BudgetRefused: no price is known; it does not fit what the run may spend.
    """
    steps = workspace.params.distill.steps if "distill" in todo.stages else 0
    found = quote(workspace, settings, book, run=todo.run.run_id, steps=steps)
    with Ledger.open(settings.ledger_url) as ledger:
        goes_on = bool(steps) and has_begun(workspace, todo.run, ledger)
    offers = [
        choice
        for choice in found.choices
        if choice.machine.market != "local"
        and instance_type in (None, choice.machine.instance_type)
        and market in (None, choice.machine.market)
    ]
    if not offers:
        known = ", ".join(
            dict.fromkeys(c.instance_type for c in workspace.params.prices.candidates)
        )
        raise UserError(
            f"no EC2 machine of type {instance_type or 'any'} and market {market or 'any'} is in "
            f"prices.candidates of {workspace.customer}, which has {known or 'none'}"
        )
    best = offers[0]
    if best.usd is None:
        why = dict.fromkeys(choice.machine.why_unknown for choice in offers)
        raise BudgetRefused(f"nothing is started: {'; '.join(why)}")
    require_budget_left(found.may_spend, spent_usd=found.spent_usd)
    left = found.left_usd
    name = f"{best.machine.instance_type} {best.machine.market} in {best.machine.zone}"
    assert best.steps_usd is not None
    least = best.usd - best.steps_usd if goes_on else best.usd
    if least > left:
        raise BudgetRefused(
            f"nothing is started: {name} is the cheapest at {format_usd(least)}, with "
            "what is kept back for what follows distillation, its start, end and disk, and "
            f"{format_usd(left)} are left of {found.may_spend.by}; lower distill.steps, or raise "
            "the budget"
        )
    most = _on_demand_usd_per_hour(found, best)
    if most is None:
        raise BudgetRefused(
            f"nothing is started: what {name} can come to is not known, for AWS tells no price on "
            "demand of it (pricing:GetProducts)"
        )
    hours = left / (most + volume_usd_per_hour(workspace))
    assert best.machine.usd_per_hour is not None
    return Picked(
        choice=best,
        quote=found,
        minutes=int(hours * 60),
        volume_gib=volume_gib(read_template(workspace.root)),
        machine_overhead_usd=quantise_usd(
            overhead_usd(workspace, best.machine.usd_per_hour, hours)
        ),
        goes_on=goes_on,
    )


def _on_demand_usd_per_hour(found: Quote, best: Choice) -> Decimal | None:
    """What the machine can come to: EC2 takes a spot machine back before it costs more."""
    wanted = (best.machine.instance_type, best.machine.region)
    for choice in found.choices:
        machine = choice.machine
        if (machine.instance_type, machine.region) == wanted and machine.market == "on-demand":
            return machine.usd_per_hour
    return None
