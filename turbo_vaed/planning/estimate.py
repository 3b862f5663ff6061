"""What a customer's next run will cost: the facts, the estimate, and whether it fits its limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from turbo_vaed.costs import SpendingLimit, format_usd, total_usd
from turbo_vaed.costs.money import plain, quantise_usd, seconds_usd, time_usd
from turbo_vaed.errors import BudgetRefused, UserError
from turbo_vaed.planning.history import NO_TIME, PastRuns, Timing
from turbo_vaed.planning.pricing import RunPrices
from turbo_vaed.runtime.files import write_json
from turbo_vaed.runtime.progress import format_duration

ESTIMATE_FILE = "estimate.json"
"""In the customer's folder: the estimate of the last run, for its report."""
UNFORESEEN = Decimal("1.2")
"""Factor of a range's high end, for restarts; its steps are as slow as the slowest tenth."""
_CHANGED_PARAMS = Decimal(3)
"""Factor of the high end for stages whose parameters have changed, on the time they took last."""


@dataclass(frozen=True, kw_only=True)
class CostRange:
    """USD that the rest of a run will cost, and the basis of that estimate."""

    low_usd: Decimal
    likely_usd: Decimal
    high_usd: Decimal
    seconds: float
    """The likely time of the remaining steps."""
    basis: str

    def __str__(self) -> str:
        return (
            f"{format_usd(self.likely_usd)} ({format_usd(self.low_usd)} to "
            f"{format_usd(self.high_usd)}): {self.basis}"
        )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What an estimate rests on, all of it read before anything is computed."""

    stages: tuple[str, ...]
    """That are run."""
    resumes: bool
    """Whether this run has trained before: it goes on, and stops by itself at its budget."""
    steps: int
    """Of `distill`."""
    prices: RunPrices
    past: PastRuns
    time_by_flops: Callable[[], Timing | None]
    """The run's time by arithmetic, for a run that was never measured. It times a worker, which
    takes seconds; None where no worker is free."""
    reserve_seconds: float
    """`budget.reserve_seconds`."""
    device: str
    packages: int
    """That are measured on it."""
    spent_usd: Decimal
    """By the run so far."""


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What a run will cost beyond what it has spent, in USD."""

    cost: CostRange | None
    """None for a run that resumes, and where no worker could be timed."""
    committed_usd: Decimal
    """What it spends even if training stops at once; reserved as far as the limits allow."""
    reserve_usd: Decimal = Decimal(0)
    """The part of that which training leaves to later stages and devices."""
    unmeasured_usd: Decimal = Decimal(0)
    """The part of the likely cost that no run has measured: it may not be needed, but training must
    leave it."""
    spare_reserve_usd: Decimal = Decimal(0)
    """The part of the reserve above what later stages took: training cannot spend it."""
    steps_within: Callable[[Decimal], int] = lambda left_usd: 0
    """How many steps fit so many USD."""

    @property
    def least_usd(self) -> Decimal:
        """What must be reserved for the run to begin."""
        if self.cost is None:
            return self.committed_usd
        return min(self.committed_usd, self.cost.low_usd)


def estimate_run(facts: RunFacts) -> RunEstimate:
    """The cost of the stages of a run: by the pace of earlier runs, or by arithmetic where none was
    measured; without training, by what each stage took last.

    Raises:
        Unreachable: Ray does not answer.
    """
    if "distill" not in facts.stages:
        cost = _cost_of_later_stages(facts)
        return RunEstimate(cost=cost, committed_usd=cost.high_usd)
    past, reserve_usd = facts.past, facts.prices.reserve_usd + facts.prices.devices_usd
    if facts.resumes:
        return RunEstimate(cost=None, committed_usd=reserve_usd, reserve_usd=reserve_usd)
    measured = past.pace
    if measured is not None:
        other_usd, unmeasured_usd = past.other_usd(facts.stages, measured), Decimal(0)
        later_usd = past.downstream_usd(facts.stages, measured)
        spare_usd = max(Decimal(0), reserve_usd - later_usd)
        timing = Timing(pace=measured, once=NO_TIME)
        basis = f"{format_usd(other_usd)} for everything else, as in the last runs"
    else:
        by_flops = facts.time_by_flops()
        if by_flops is None:
            return RunEstimate(cost=None, committed_usd=reserve_usd, reserve_usd=reserve_usd)
        timing = by_flops
        other_usd = unmeasured_usd = quantise_usd(reserve_usd)
        spare_usd = Decimal(0)
        basis = (
            f"{format_duration(timing.once.mean)} for the teacher and {format_usd(other_usd)} for "
            "later stages, by arithmetic: no earlier run has these params on this machine"
        )
    cost = cost_range(
        steps=facts.steps,
        timing=timing,
        other_usd=other_usd,
        least_other_usd=other_usd - unmeasured_usd,
        usd_per_hour=facts.prices.usd_per_hour,
        most_usd_per_hour=facts.prices.most_usd_per_hour,
        basis=f"{timing.pace.mean:.3g} s per step and {basis}",
    )

    def steps_within(left_usd: Decimal) -> int:
        if not facts.prices.usd_per_hour:
            return 0
        return min(
            facts.steps,
            steps_that_fit(
                left_usd,
                timing=timing,
                other_usd=other_usd,
                usd_per_hour=facts.prices.usd_per_hour,
            ),
        )

    return RunEstimate(
        cost=cost,
        committed_usd=reserve_usd,
        reserve_usd=reserve_usd,
        unmeasured_usd=unmeasured_usd,
        spare_reserve_usd=spare_usd,
        steps_within=steps_within,
    )


def _cost_of_later_stages(facts: RunFacts) -> CostRange:
    """Of stages after distillation: the time that each took last, likely `budget.reserve_seconds`
    where one of them never ran, and the most that a paid device can cost."""
    past, prices = facts.past, facts.prices
    took = [past.node_seconds(stage) for stage in facts.stages]
    known, reserved = sum(took, Decimal(0)), Decimal(str(facts.reserve_seconds))
    seconds = known if all(took) else max(known, reserved)
    devices_usd = prices.devices_usd if "gate" in facts.stages else Decimal(0)
    unforeseen, notes = UNFORESEEN, []
    changed = [stage for stage in facts.stages if stage in past.changed_stages]
    if changed:
        seconds, unforeseen = max(seconds, reserved), _CHANGED_PARAMS
        notes.append(
            f"counted as {format_duration(float(seconds))} to "
            f"{format_duration(float(seconds * unforeseen))}, as the parameters of "
            f"{' and '.join(changed)} have changed since"
        )
    elif seconds > known:
        notes.append(
            f"counted as {format_duration(float(seconds))}, as not all of them have run before"
        )
    if devices_usd:
        notes.append(f"at most {format_usd(devices_usd)} for measuring on {facts.device}")
    time_usd = seconds_usd(seconds, prices.usd_per_hour)
    took_last = f"{', '.join(facts.stages)} took {format_duration(float(known))} in the last run"
    return CostRange(
        low_usd=seconds_usd(known, prices.usd_per_hour) + devices_usd,  # at least this was reserved
        likely_usd=time_usd + devices_usd,
        high_usd=quantise_usd(time_usd * unforeseen) + devices_usd,
        seconds=0.0,
        basis="; ".join((took_last, *notes)),
    )


def require_fit(
    estimate: RunEstimate,
    facts: RunFacts,
    limit: SpendingLimit,
    offers: Callable[[Decimal], str] = lambda left_usd: "",
) -> None:
    """Refuse a run that does not fit its limit even at the low end of its estimate; a run that
    trains also has to leave what its later stages need.

    Args:
        offers: a sentence on which machine would finish for less than so many USD, or nothing.

    Raises:
        BudgetRefused: it does not fit; says which change would make it fit.
    """
    cost = estimate.cost
    if cost is None:
        return
    left_usd = limit.usd - facts.spent_usd
    for_steps_usd = left_usd - estimate.spare_reserve_usd
    trains = "distill" in facts.stages
    usable_usd = for_steps_usd - estimate.unmeasured_usd
    if cost.low_usd <= (max(usable_usd, Decimal(0)) if trains else left_usd):
        return
    found = (
        f"the run does not fit its budget: estimated at {cost}. It can spend "
        f"{format_usd(max(usable_usd, Decimal(0)))} of {limit.by}"
    )
    missing_usd = cost.high_usd - for_steps_usd
    name = limit.by.partition(" ")[0]
    more = f"raise {name} by {format_usd(missing_usd)}"
    if limit.is_own_budget:
        more = f"raise {name} to {format_usd(limit.usd + missing_usd)}"
    if not trains:
        raise BudgetRefused(
            f"{found}. To make it fit, measure on another gate.device than {facts.device}, with "
            f"fewer export.targets than {facts.packages}, or {more}"
        )
    steps = estimate.steps_within(for_steps_usd)
    fewer = f"set distill.steps to {steps} or {more}" if steps else more
    offer = offers(left_usd)
    raise BudgetRefused(
        f"{found}, and {format_usd(estimate.reserve_usd)} are reserved for evaluate, export, gate "
        f"and report. To make it fit, {fewer}{offer and '. ' + offer}"
    )


def save_estimate(folder: Path, estimate: RunEstimate, facts: RunFacts) -> None:
    """Write the estimate of the whole run, including what it has spent, for the report; none where
    no worker could be timed."""
    path, cost = folder / ESTIMATE_FILE, estimate.cost
    if cost is None:
        path.unlink(missing_ok=True)
        return
    spent_usd = facts.spent_usd
    before = f"; {format_usd(spent_usd)} spent before" if spent_usd else ""
    write_json(
        path,
        {
            **{
                name: plain(getattr(cost, name) + spent_usd)
                for name in ("low_usd", "likely_usd", "high_usd")
            },
            "basis": cost.basis + before,
            "seconds": cost.seconds,
            "steps": facts.steps,
        },
    )


def cost_range(
    *,
    steps: int,
    timing: Timing,
    other_usd: Decimal,
    least_other_usd: Decimal | None = None,
    usd_per_hour: Decimal,
    most_usd_per_hour: Decimal,
    basis: str,
) -> CostRange:
    """The cost of a run of so many steps.

    Args:
        timing: seconds per step, and of work that is done once on all nodes.
        other_usd: everything else: the other stages, and starts.
        least_other_usd: the low end of that; all of it where None.
        usd_per_hour: of all nodes together, now.
        most_usd_per_hour: the most that they can cost.
        basis: in words, what was measured where.

    Raises:
        UserError: a negative value, or one that is not finite.
    """
    if steps < 0 or not other_usd.is_finite() or other_usd < 0:
        raise UserError(
            f"estimate: steps {steps}, other_usd {other_usd}; expected 0 or more of both"
        )

    def usd(seconds: float, rate: Decimal, other: Decimal = other_usd) -> Decimal:
        return total_usd((other, time_usd(round(seconds * 1e6), rate)))

    least = other_usd if least_other_usd is None else least_other_usd
    pace, once = timing.pace, timing.once
    likely = steps * pace.mean
    return CostRange(
        low_usd=usd(once.least + steps * pace.least, usd_per_hour, least),
        likely_usd=usd(once.mean + likely, usd_per_hour),
        high_usd=quantise_usd(usd(once.most + steps * pace.most, most_usd_per_hour) * UNFORESEEN),
        seconds=likely,
        basis=basis,
    )


def steps_that_fit(
    left_usd: Decimal, *, timing: Timing, other_usd: Decimal, usd_per_hour: Decimal
) -> int:
    """The most steps whose likely cost is within `left_usd`; 0 where not even the rest is.

    Raises:
        UserError: time costs nothing, so that any number of steps fits.
    """
    if usd_per_hour == 0:
        raise UserError("estimate: where time costs nothing every number of steps fits")
    seconds = float((left_usd - other_usd) / usd_per_hour) * 3600
    return max(0, math.floor((seconds - timing.once.mean) / timing.pace.mean))
