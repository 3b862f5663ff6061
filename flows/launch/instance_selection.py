"""Which EC2 machine a run is started on, and for how long its budget pays for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from flows.to_do import ToDo
from turbo_vaed.costs import PriceBook, format_usd, require_budget_left
from turbo_vaed.costs.choice import MachineChoice
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.planning.ec2_costs import (
    BEFORE_MINUTES,
    overhead_usd,
    read_template,
    volume_gib,
    volume_usd_per_hour,
)
from turbo_vaed.planning.quote import Quote, machine_name, quote
from turbo_vaed.runtime.progress import format_duration
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The machine that a run is started on, and why."""

    choice: MachineChoice
    quote: Quote
    minutes: int
    """After which the machine ends itself: by then it has spent what the run may spend, at the most
    that an hour of it can cost."""
    volume_gib: int
    machine_overhead_usd: Decimal
    """Reserved for what the machine costs outside its stages: time, and its volume."""
    resumes: bool = False
    """Whether the run resumes its training: only the machine will know how many steps are left."""

    @property
    def sentence(self) -> str:
        """What is started, and what it is expected to cost."""
        machine = self.choice.machine
        assert self.choice.usd is not None and self.choice.steps_usd is not None
        assert machine.usd_per_hour is not None
        cost = f"the run is expected to cost {format_usd(self.choice.usd)}"
        if self.resumes:
            cost = f"the run resumes, and is to cost at most {format_usd(self.choice.usd)}"
        sentence = (
            f"{machine_name(machine)}: {cost}, {format_usd(self.choice.steps_usd)} of it for "
            f"distillation, at {format_usd(machine.usd_per_hour)} per hour; the machine ends "
            f"itself after at most {self.minutes} minutes"
        )
        needed = BEFORE_MINUTES * 60 + self.choice.seconds
        if not self.resumes and needed > self.minutes * 60:
            sentence += f", BEFORE the {format_duration(needed)} that set-up and steps need"
        return sentence


def select_instance(
    workspace: Workspace,
    settings: Settings,
    todo: ToDo,
    *,
    instance_type: str | None = None,
    market: str | None = None,
    book: PriceBook | None = None,
) -> Selection:
    """The EC2 machine on which the customer's run is expected to cost the least.

    A run that resumes its training is not refused because of its steps: it goes on from its last
    checkpoint, and stops by itself.

    Args:
        instance_type: of prices.candidates; any by default.
        market: spot or on-demand; either by default.
        book: of prices; by default those of AWS.

    Raises:
        UserError: no candidate has that type and market; as `quote`.
        BudgetRefused: no price is known, or the run does not fit what it may spend.
    """
    steps = workspace.params.distill.steps if "distill" in todo.stages else 0
    found = quote(workspace, settings, book, run=todo.run.run_id, steps=steps)
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
            f"prices.candidates of {workspace.customer} has no EC2 machine of type "
            f"{instance_type or 'any'} and market {market or 'any'}; its types: {known or 'none'}"
        )
    best = offers[0]
    if best.usd is None:
        why = dict.fromkeys(choice.machine.why_unknown for choice in offers)
        raise BudgetRefused(f"no machine is started: {'; '.join(why)}")
    require_budget_left(found.limit, spent_usd=found.spent_usd)
    left = found.left_usd
    name = machine_name(best.machine)
    assert best.steps_usd is not None
    least = best.usd - best.steps_usd if todo.resumes else best.usd
    if least > left:
        raise BudgetRefused(
            f"no machine is started: the cheapest, {name}, costs {format_usd(least)} including "
            "later stages, start, end and disk, and there is only "
            f"{format_usd(left)} left of {found.limit.by}; lower distill.steps, or raise the budget"
        )
    most = _on_demand_usd_per_hour(found, best)
    if most is None:
        raise BudgetRefused(
            f"no machine is started: the most that {name} can cost is unknown, as AWS gives no "
            "on-demand price for it (pricing:GetProducts)"
        )
    hours = left / (most + volume_usd_per_hour(workspace))
    assert best.machine.usd_per_hour is not None
    return Selection(
        choice=best,
        quote=found,
        minutes=int(hours * 60),
        volume_gib=volume_gib(read_template(workspace.root)),
        machine_overhead_usd=quantise_usd(
            overhead_usd(workspace, best.machine.usd_per_hour, hours)
        ),
        resumes=todo.resumes,
    )


def _on_demand_usd_per_hour(found: Quote, best: MachineChoice) -> Decimal | None:
    """The most that the machine can cost: EC2 takes a spot instance back before it costs more."""
    wanted = (best.machine.instance_type, best.machine.region)
    for choice in found.choices:
        machine = choice.machine
        if (machine.instance_type, machine.region) == wanted and machine.market == "on-demand":
            return machine.usd_per_hour
    return None
