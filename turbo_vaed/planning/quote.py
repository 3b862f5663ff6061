"""On which machine a customer's run would cost the least, interruptions included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from turbo_vaed.cluster.nodes import price_book
from turbo_vaed.config.schema import CandidateParams
from turbo_vaed.costs import (
    Ledger,
    PriceBook,
    SpendingLimit,
    format_usd,
    per_second,
    spending_limit,
)
from turbo_vaed.costs.aws_prices import Ec2Quote
from turbo_vaed.costs.choice import Machine, MachineChoice, choices
from turbo_vaed.costs.money import plain, quantise_usd
from turbo_vaed.costs.run_context import DownstreamCost
from turbo_vaed.distill.events import (
    DEFAULT_RESTART_SECONDS,
    DEFAULT_SAVE_SECONDS,
    RunProgress,
    read_progress,
)
from turbo_vaed.errors import UserError
from turbo_vaed.planning.ec2_costs import AFTER_MINUTES, BEFORE_MINUTES, overhead_usd
from turbo_vaed.planning.history import PastRuns, past_runs
from turbo_vaed.planning.pricing import devices_usd, limits_of, reserve_seconds
from turbo_vaed.runtime.progress import format_duration
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_ASSUMED_HOURS = 24.0
"""Hours of observation that weigh as much as an assumed rate of interruptions."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Every machine that a run could take, the cheapest first."""

    sentence: str
    choices: list[MachineChoice]
    limit: SpendingLimit
    spent_usd: Decimal
    """By the run that goes on, so far."""
    save_seconds: float
    restart_seconds: float
    basis: str
    """What was measured, and what is assumed."""

    @property
    def left_usd(self) -> Decimal:
        """What may still be spent; 0 or less where nothing may."""
        return self.limit.usd - self.spent_usd

    def rows(self, budget_usd: Decimal) -> list[dict[str, Any]]:
        """A table: machine, price, time, USD of the steps (`steps_usd`) and of the run (`usd`), and
        whether that fits what may still be spent, at most `budget_usd`."""
        return [_row(choice, min(budget_usd, self.left_usd)) for choice in self.choices]

    def document(self, budget_usd: Decimal) -> dict[str, Any]:
        """For JSON."""
        return {
            "sentence": self.sentence,
            "basis": self.basis,
            "save_seconds": self.save_seconds,
            "restart_seconds": self.restart_seconds,
            "choices": self.rows(budget_usd),
        }


def quote(
    workspace: Workspace,
    settings: Settings,
    book: PriceBook | None = None,
    *,
    run: str | None = None,
    steps: int | None = None,
) -> Quote:
    """What a run would cost on this machine and on every machine of `prices.candidates`: the steps
    of `distill`, what is reserved for the stages after it, and the overhead of an EC2 instance.

    Args:
        book: of prices; by default those of AWS.
        run: a run that goes on; a fresh one by default.
        steps: all of `distill.steps` by default.

    Raises:
        UserError: RAY_ADDRESS names a cluster; an invalid candidate, or environment of a cluster.
        Unreachable: the ledger cannot be read.
    """
    if settings.on_a_cluster:
        raise UserError(
            "a quote compares machines with this one and not with a cluster: unset RAY_ADDRESS"
        )
    steps = workspace.params.distill.steps if steps is None else steps
    book = book or price_book(workspace.params, settings)
    seen = read_progress(workspace.progress_file)
    save, restart = (
        seen.save_seconds or DEFAULT_SAVE_SECONDS,
        seen.restart_seconds or DEFAULT_RESTART_SECONDS,
    )
    with Ledger.open(settings.ledger_url) as ledger:
        past = past_runs(workspace, settings, ledger)
        limit = spending_limit(
            ledger,
            limits_of(workspace.params),
            run=run or "",
            customer=workspace.customer,
            at=datetime.now(UTC),
        )
        spent_usd = ledger.total(run=run) if run else Decimal(0)
    measured, after, spot_type = past.pace, past.downstream, _spot_type(past)
    from turbo_vaed.planning.flops import expected_pace  # it takes PyTorch

    pace = measured or expected_pace(workspace, settings)
    assert pace is not None, "this machine can be timed"
    machines = [
        replace(machine, is_measured=machine.is_measured and measured is not None)
        for machine in _machines(workspace, book, 1 / pace.mean, spot_type, seen)
    ]
    found = choices(
        machines,
        steps=steps,
        save_seconds=save,
        restart_seconds=restart,
        rest_usd=partial(_rest_usd, workspace, after),
    )
    return Quote(
        sentence=_sentence(found, steps),
        choices=found,
        limit=limit,
        spent_usd=spent_usd,
        save_seconds=save,
        restart_seconds=restart,
        basis=f"{pace.mean:.3g} s per step on this machine "
        f"({'measured' if measured else 'by arithmetic, as no run has measured it'}); "
        f"{save:.2g} s per checkpoint ({_origin(seen.save_seconds)}); "
        f"{restart:.0f} s per restart ({_origin(seen.restart_seconds)}); "
        f"{format_duration(reserve_seconds(workspace.params, after))} for the stages after "
        "distillation; the speed of other machines, and their interruptions where the last run saw "
        "none, as assumed in prices.candidates",
    )


def cheapest_elsewhere(
    workspace: Workspace, settings: Settings, left_usd: Decimal, book: PriceBook | None = None
) -> str:
    """A sentence on the cheapest other machine, and whether a whole run on it costs less than
    `left_usd`; empty on a cluster.

    Raises: as `quote`.
    """
    if settings.on_a_cluster:
        return ""
    try:
        found = quote(workspace, settings, book)
    except UserError as error:  # of a candidate, and not of the run that is being estimated
        return f"Other machines are not compared: {error}"
    offers = [choice for choice in found.choices if choice.machine.region]
    if not offers or offers[0].usd is None:
        return "Other machines are not compared: no price of prices.candidates is known"
    best = offers[0]  # as `turbo-vaed ec2 run` takes it
    assert best.usd is not None
    cost = f"{machine_name(best.machine)} is expected to cost {format_usd(best.usd)}"
    if best.usd > left_usd:
        return f"No machine of prices.candidates fits either: the cheapest, {cost}"
    return f"Or run it on another machine: {cost} (turbo-vaed ec2 run {workspace.customer})"


def _rest_usd(
    workspace: Workspace, after: DownstreamCost, machine: Machine, steps_seconds: float
) -> Decimal:
    """What a run on a machine of a known price costs besides its steps: what is reserved for the
    stages after distillation and for devices, and the overhead of an EC2 instance."""
    assert machine.usd_per_hour is not None
    seconds = Decimal(str(reserve_seconds(workspace.params, after)))
    usd = after.usd + devices_usd(workspace.params) + seconds * per_second(machine.usd_per_hour)
    if machine.region:
        up_minutes = (Decimal(steps_seconds) + seconds) / 60 + BEFORE_MINUTES + AFTER_MINUTES
        usd += overhead_usd(workspace, machine.usd_per_hour, up_minutes / 60)
    return quantise_usd(usd)


def _origin(measured: float | None) -> str:
    return "assumed" if measured is None else "measured"


def _spot_type(past: PastRuns) -> str | None:
    """The one type of spot machine that the customer's last distillation ran on; None where it ran
    on none or on several, since interruptions are not counted by type."""
    groups = [g for g in past.groups if g.stage == "distill"]
    last = max(groups, key=lambda group: group.last_at, default=None)
    found = {g.resource for g in groups if last and g.run == last.run and g.market == "spot"}
    return found.pop() if len(found) == 1 else None


def _interruptions_per_hour(assumed: float, hours: float, seen: int) -> float:
    """The assumed rate, weighted as a day of observation, together with what was observed."""
    return (assumed * _ASSUMED_HOURS + seen) / (_ASSUMED_HOURS + hours)


def _machines(
    workspace: Workspace,
    book: PriceBook,
    steps_per_second: float,
    spot_type: str | None,
    seen: RunProgress,
) -> Iterator[Machine]:
    local = book.usd_per_hour("node", "local")
    yield Machine(
        instance_type="this machine",
        market="local",
        zone="",
        usd_per_hour=local,
        steps_per_second=steps_per_second,
        interruptions_per_hour=0.0,
        is_measured=True,
        why_unknown="" if local is not None else "prices.local_usd_per_hour is null",
    )
    for candidate in workspace.params.prices.candidates:
        if candidate.instance_type == spot_type:
            of_it = _interruptions_per_hour(
                candidate.interruptions_per_hour, seen.active_seconds / 3600, seen.interruptions
            )
            candidate = dataclasses.replace(candidate, interruptions_per_hour=of_it)
        yield _priced(candidate, book, steps_per_second, None)
        for zone in candidate.zones:
            yield _priced(candidate, book, steps_per_second, zone)


def _priced(
    candidate: CandidateParams, book: PriceBook, steps_per_second: float, zone: str | None
) -> Machine:
    """A candidate on demand, or with a zone on spot."""
    market: Literal["spot", "on-demand"] = "on-demand" if zone is None else "spot"
    found: Ec2Quote | str = "no price list is at hand"
    if book.ec2 is not None:
        found = book.ec2.quote(candidate.instance_type, market, candidate.region, zone)
    return Machine(
        instance_type=candidate.instance_type,
        market=market,
        zone=zone or candidate.region,
        region=candidate.region,
        usd_per_hour=None if isinstance(found, str) else found.usd_per_hour,
        steps_per_second=steps_per_second * candidate.speed,
        interruptions_per_hour=candidate.interruptions_per_hour if zone else 0.0,
        why_unknown=found if isinstance(found, str) else "",
        warning="" if isinstance(found, str) else found.warning,
    )


def _sentence(found: list[MachineChoice], steps: int) -> str:
    best = found[0]
    if best.usd is None:
        why = dict.fromkeys(choice.machine.why_unknown for choice in found)
        return f"No price is known, so nothing can be run: {'; '.join(why)}."
    name, unknown = machine_name(best.machine), sum(choice.usd is None for choice in found)
    assert best.steps_usd is not None
    if not steps:
        return f"Without training a run is cheapest on {name}: {format_usd(best.usd)}."
    cost = (
        f"{format_usd(best.usd)} for the whole run, {format_usd(best.steps_usd)} of it for "
        f"{format_duration(best.seconds)} of steps, interruptions included"
    )
    if unknown == len(found) - 1:
        return f"{steps} steps on {name}: {cost}; no other price is known."
    note = f" ({unknown} prices are not known)" if unknown else ""
    return f"{steps} steps are cheapest on {name}: {cost}{note}."


def machine_name(machine: Machine) -> str:
    """A machine for a sentence: `g6.xlarge spot in eu-central-1b`."""
    where = "" if machine.market == "local" else f" {machine.market} in {machine.zone}"
    return f"{machine.instance_type}{where}"


def _row(choice: MachineChoice, left_usd: Decimal) -> dict[str, Any]:
    machine = choice.machine
    every = choice.checkpoint_every_seconds
    return {
        "machine": machine.instance_type,
        "market": machine.market,
        "zone": machine.zone or None,
        "usd_per_hour": None if machine.usd_per_hour is None else plain(machine.usd_per_hour),
        "speed": "measured" if machine.is_measured else "assumed",
        "time": format_duration(choice.seconds),
        "save_every": None if every == float("inf") else format_duration(every),
        "steps_usd": None if choice.steps_usd is None else format_usd(choice.steps_usd),
        "usd": None if choice.usd is None else format_usd(choice.usd),
        "fits": None if choice.usd is None else choice.usd <= left_usd,
        "why_unknown": machine.why_unknown or None,
        "warning": machine.warning or None,
    }
