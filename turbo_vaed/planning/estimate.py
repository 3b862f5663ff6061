"""What a customer's next run will cost, by what the last one took."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from turbo_vaed.config.schema import DistillParams
from turbo_vaed.config.stages import AFTER_DISTILL, IDLE_STAGE, STAGES
from turbo_vaed.config.yaml_file import read_yaml
from turbo_vaed.costs import (
    ChargeGroup,
    Ledger,
    format_usd,
    storage,
    total_usd,
    transfer,
)
from turbo_vaed.costs.estimate import (
    NO_TIME,
    UNFORESEEN,
    Estimate,
    Pace,
    estimate,
    pace,
    require_fit,
    steps_that_fit,
)
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import plain, quantise_usd, seconds_usd
from turbo_vaed.costs.run_context import DownstreamCost
from turbo_vaed.costs.statement import run_that_covers
from turbo_vaed.planning.ec2_costs import VOLUME
from turbo_vaed.planning.flops import expected
from turbo_vaed.planning.pricing import (
    devices_usd,
    downstream_usd_per_hour,
    most_usd_per_hour,
    price_of,
    reserve_usd,
)
from turbo_vaed.runtime.progress import format_duration
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

_NO_MATTER_OF_PACE = frozenset(
    ("steps", "learning_rate", "betas", "weight_decay", "warmup_share", "ema_decay", "seed",
     "min_workers", "keep_checkpoints", "stop_psnr_margin_db", "stop_usd_per_tenth_db")
)  # fmt: skip
_RUNS = 3
"""Whose most is what a stage may take again."""
PACE = "pace.json"
"""In the customer's folder: when the steps of the last run with a pace were done."""
_OTHER_PARAMS = Decimal(3)
"""Times what stages took last, those with other params may take."""
ESTIMATE = "estimate.json"
"""In the customer's folder: what was said before the last run."""


def pace_key(params: DistillParams, settings: Settings) -> str:
    """What a pace was measured of, and on what: a run of another kind has another pace."""
    how = {k: v for k, v in asdict(params).items() if k not in _NO_MATTER_OF_PACE}
    told = {"params": how, "on_a_cluster": settings.on_a_cluster, "machine": platform.node()}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def keep_pace(workspace: Workspace, history: dict[str, Any]) -> None:
    """Keep when the steps of a run were done, unless they are too few for a pace: what an earlier
    run has kept stands then, which a run that was stopped at once does not undo."""
    if pace(_moments(history)) is not None:
        rows = [{"step": row["step"], "at": row["at"]} for row in history["steps"]]
        kept = {"pace_key": history["pace_key"], "steps": rows}
        (workspace.work / PACE).write_text(json.dumps(kept) + "\n")


def measured_pace(workspace: Workspace, settings: Settings) -> Pace | None:
    """Seconds per step of the customer's last distillation; None where too little was measured, or
    of another student, of other losses or on other machines."""
    key = pace_key(workspace.params.distill, settings)
    for history in _kept(workspace):
        found = pace(_moments(history))
        if found is not None and history.get("pace_key") == key:
            return found
    return None


def other_usd(
    workspace: Workspace, ledger: Ledger, stages: Collection[str], measured: Pace
) -> Decimal:
    """What the nodes of `stages` cost when those ran last, but for the steps of `distill`."""
    groups = [g for g in ledger.grouped(customer=workspace.customer) if g.unit == UNIT]
    at = datetime.fromtimestamp(_history(workspace)["steps"][-1]["at"], UTC)
    # The run whose steps the history holds: a later one may have had none.
    trained = run_that_covers(groups, workspace.customer, at, at)
    found = []
    for stage in stages:
        of_run: dict[str, list[ChargeGroup]] = {}
        for group in groups:
            if group.stage == stage:
                of_run.setdefault(group.run, []).append(group)
        if not of_run:
            continue
        last = max(of_run.values(), key=lambda its: max(group.last_at for group in its))
        if stage == "distill":
            last = of_run.get(trained or "", last)
        usd = total_usd(group.amount_usd for group in last)
        found.append(_beside_steps(workspace, last, usd, measured) if stage == "distill" else usd)
    return total_usd(found)


def _beside_steps(
    workspace: Workspace, groups: list[ChargeGroup], usd: Decimal, measured: Pace
) -> Decimal:
    """Of what `distill` cost, the share of the time in which no step was done."""
    node_seconds = float(total_usd(group.quantity for group in groups))
    began, ended = min(g.first_at for g in groups), max(g.last_at for g in groups)
    nodes = max(1, round(node_seconds / max(1.0, (ended - began).total_seconds())))
    rows = _history(workspace)["steps"]
    in_steps = rows[-1].get("step", len(rows)) * measured.mean * nodes
    return quantise_usd(usd * Decimal(max(0.0, 1 - in_steps / max(node_seconds, 1e-9))))


def _moments(history: dict[str, Any]) -> list[float]:
    """When the last steps of a run were done, as far back as a row follows the one before: of a
    long run the earlier rows are thinned."""
    rows = history["steps"]
    steps = [row.get("step", i) for i, row in enumerate(rows)]
    gaps = (i for i in range(len(rows) - 1, 0, -1) if steps[i] != steps[i - 1] + 1)
    return [row["at"] for row in rows[next(gaps, 0) :]]


def _history(workspace: Workspace) -> dict[str, Any]:
    """Of the last run; where its steps are too few for a pace, of the last one with enough."""
    found: dict[str, Any] = {}
    for found in _kept(workspace):
        if pace(_moments(found)) is not None:
            break
    return found


def _kept(workspace: Workspace) -> Iterator[dict[str, Any]]:
    """The last run's history, which may be of another machine, and the last pace that was kept."""
    for path in (workspace.folder("distill") / "history.json", workspace.work / PACE):
        if path.is_file():
            yield json.loads(path.read_text())


@dataclass(frozen=True, kw_only=True)
class _Basis:
    """What an estimate rests on."""

    pace: Pace
    once: Pace
    """Seconds of encoding and of the teacher's targets, where they are known as time."""
    rest_usd: Decimal
    """Of everything beside those."""
    unused_usd: Decimal
    """The part of that which the run may turn out not to need: what was never measured."""
    reserve_usd: Decimal
    idle_usd: Decimal
    """The part of the reserve that nothing will need. It cannot be spent: training stops at it."""
    said: str


def estimate_run(
    workspace: Workspace,
    settings: Settings,
    ledger: Ledger,
    *,
    stages: Collection[str] = STAGES,
    may_spend_usd: Decimal,
    of: str = "",
    spent_usd: Decimal = Decimal(0),
    cheaper: Callable[[Decimal], str] = lambda left_usd: "",
    is_kept: bool = True,
) -> Estimate | None:
    """What a run of `stages` will cost: by the pace of the last run, or where none was measured by
    arithmetic; where nothing is distilled, by what each stage took last.

    Args:
        may_spend_usd: by the whole run.
        of: the limit that leaves no more, in words.
        spent_usd: of that, by now.
        cheaper: which machine would finish for less than so many USD, as the end of a sentence;
            asked where the run does not fit.
        is_kept: in work/CUSTOMER/estimate.json, for the report.

    Returns:
        None where a cluster has no worker that can be timed.

    Raises:
        BudgetRefused: it cannot fit what is left of `may_spend_usd`, or may not where nothing is
            distilled, so that nothing could stop it; says with what change it would.
        Unreachable: the ledger, or Ray, does not answer.
    """
    if is_kept:
        (workspace.work / ESTIMATE).unlink(missing_ok=True)
    left_usd = may_spend_usd - spent_usd - settings.machine_overhead_usd
    if "distill" not in stages:
        found = _estimate_rest(workspace, settings, ledger, stages)
        if is_kept:
            _keep(workspace, found, spent_usd)
        require_fit(
            found,
            left_usd,
            of=of,
            change=f"take another gate.device than {workspace.params.device.name}, fewer "
            "export.targets "
            f"than {len(workspace.params.export.targets)}, or "
            f"{_larger(of, found.high_usd - left_usd)}",
        )
        return found
    usd_per_hour = price_of(workspace.params, settings, "distill")
    most = most_usd_per_hour(workspace.params, settings, "distill")
    basis = _basis(workspace, settings, ledger, stages, most)
    if basis is None:
        return None
    facts: dict[str, Any] = {
        "measured": basis.pace,
        "once": basis.once,
        "other_usd": basis.rest_usd,
        "usd_per_hour": usd_per_hour,
    }
    steps, left_usd = workspace.params.distill.steps, left_usd - basis.idle_usd
    overhead_usd = basis.idle_usd + settings.machine_overhead_usd + spent_usd
    found = estimate(
        steps=steps,
        **facts,
        most_usd_per_hour=most,
        least_other_usd=basis.rest_usd - basis.unused_usd,
        basis=f"at {basis.pace.mean:.3g} s a step and {format_usd(basis.rest_usd)} {basis.said}",
    )
    if is_kept:
        _keep(workspace, found, spent_usd)
    if found.low_usd + basis.unused_usd > left_usd:
        fitting = min(steps, steps_that_fit(left_usd, **facts)) if usd_per_hour else 0
        fewer = (
            f"with distill.steps of {fitting}, or" if fitting else "with no number of steps, but"
        )
        require_fit(
            found,
            max(left_usd - basis.unused_usd, Decimal(0)),  # that is kept back all the same
            of=f"{format_usd(may_spend_usd - spent_usd)} that are left of {of}" if of else "",
            change=f"it would {fewer} with "
            f"{_larger(of, found.high_usd + overhead_usd - may_spend_usd, may_spend_usd)}"
            f"{cheaper(left_usd + basis.idle_usd)}; "
            f"{format_usd(basis.reserve_usd)} are kept back for evaluate, export, gate and report "
            "(budget.reserve_seconds, or what they took before, and what a device can cost)",
        )
    return found


def _basis(
    workspace: Workspace, settings: Settings, ledger: Ledger, stages: Collection[str], most: Decimal
) -> _Basis | None:
    """None where no pace is known: `most` USD per hour is what all nodes can come to."""
    after = downstream(ledger, workspace.customer)
    kept_usd = devices_usd(workspace.params) + reserve_usd(
        workspace.params, settings, after, nodes_usd_per_hour=most
    )
    measured = measured_pace(workspace, settings)
    if measured is None:
        found = expected(workspace, settings, stages)
        if found is None:
            return None
        return _Basis(
            pace=found.pace,
            once=found.once,
            rest_usd=quantise_usd(kept_usd),
            unused_usd=quantise_usd(kept_usd),
            reserve_usd=kept_usd,
            idle_usd=Decimal(0),
            said=f"for what follows, with {format_duration(found.once.mean)} of the teacher, by "
            "arithmetic alone: no run has measured these params on this machine",
        )
    needed = other_usd(
        workspace, ledger, [stage for stage in stages if stage in AFTER_DISTILL], measured
    )
    ran = other_usd(workspace, ledger, stages, measured)
    waited, devices = _beside_stages_usd(ledger, workspace.customer)
    return _Basis(
        pace=measured,
        once=NO_TIME,
        rest_usd=total_usd((ran, after.usd, waited, devices)),
        unused_usd=Decimal(0),
        reserve_usd=kept_usd,
        idle_usd=max(Decimal(0), kept_usd - needed - after.usd - devices),
        said="for the rest, as in the last runs",
    )


def _larger(of: str, more_usd: Decimal, run_usd: Decimal | None = None) -> str:
    """Which limit would have to be what."""
    name = of.partition(" ")[0]
    if name in ("", "budget.run_usd") and run_usd is not None:
        return f"a budget.run_usd of {format_usd(run_usd + more_usd)}"
    return f"a {name or 'budget'} that is larger by {format_usd(more_usd)}"


def least_usd(
    workspace: Workspace, settings: Settings, ledger: Ledger, stages: Collection[str]
) -> Decimal:
    """What a run of `stages` has to keep back of a month that it shares: the reserve, or where
    nothing is distilled all that it can cost; and what its machine costs beside.

    Raises: as `estimate_run`.
    """
    if "distill" not in stages:
        return (
            _estimate_rest(workspace, settings, ledger, stages).high_usd
            + settings.machine_overhead_usd
        )
    most = most_usd_per_hour(workspace.params, settings, "distill")
    reserve = reserve_usd(
        workspace.params, settings, downstream(ledger, workspace.customer), nodes_usd_per_hour=most
    )
    return reserve + devices_usd(workspace.params) + settings.machine_overhead_usd


def _estimate_rest(
    workspace: Workspace, settings: Settings, ledger: Ledger, stages: Collection[str]
) -> Estimate:
    """Of stages after distillation: the time that each took last, or where one of them never ran
    likely `budget.reserve_seconds`; and the most that a device which is paid for can cost."""
    params = workspace.params
    groups = [g for g in ledger.grouped(customer=workspace.customer) if g.useful == "useful"]
    took = [_seconds(groups, stage, runs=1) for stage in stages]
    known = total_usd(took)
    seconds = known if all(took) else max(known, Decimal(str(params.budget.reserve_seconds)))
    usd_per_hour = downstream_usd_per_hour(params, settings, price_of(params, settings, "distill"))
    time_usd = seconds_usd(seconds, usd_per_hour)
    devices = devices_usd(params) if "gate" in stages else Decimal(0)
    said = ""
    if seconds > known:
        said = f", counted as {format_duration(float(seconds))}, for one of them never ran"
    unforeseen = UNFORESEEN
    if changed := [stage for stage in stages if _has_other_params(workspace, stage)]:
        seconds = max(seconds, Decimal(str(params.budget.reserve_seconds)))
        time_usd, unforeseen = seconds_usd(seconds, usd_per_hour), _OTHER_PARAMS
        said = (
            f", counted as {format_duration(float(seconds))} and up to three times as much, for "
            f"the params of {' and '.join(changed)} are others since"
        )
    if devices:
        said += f", and {format_usd(devices)} at most of {params.device.name}"
    return Estimate(
        low_usd=seconds_usd(known, usd_per_hour) + devices,  # training has left this, and no more
        likely_usd=time_usd + devices,
        high_usd=quantise_usd(time_usd * unforeseen) + devices,
        seconds=0.0,
        basis=f"by the {format_duration(float(known))} of {', '.join(stages)} last time{said}",
    )


def _has_other_params(workspace: Workspace, stage: str) -> bool:
    """Whether a stage would be run with other params than when it was run last, by DVC's record."""
    lock, path = workspace.dvc_lock, workspace.work / "params" / f"{stage}.yaml"
    if not (lock.is_file() and path.is_file()):
        return False
    known = read_yaml(lock).get("stages", {}).get(stage, {}).get("deps", [])
    name = str(path.relative_to(workspace.root))
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return any(dep["path"] == name and dep["md5"] != found for dep in known)


def _keep(workspace: Workspace, found: Estimate, spent_usd: Decimal) -> None:
    """For the report: of the whole run, with what it has spent before."""
    document: dict[str, Any] = {
        name: plain(getattr(found, name) + spent_usd)
        for name in ("low_usd", "likely_usd", "high_usd")
    }
    before = f", and {format_usd(spent_usd)} that were spent before" if spent_usd else ""
    document |= {"basis": found.basis + before, "seconds": found.seconds}
    document |= {"steps": workspace.params.distill.steps}
    workspace.work.mkdir(parents=True, exist_ok=True)
    (workspace.work / ESTIMATE).write_text(json.dumps(document, indent=1) + "\n")


def downstream(ledger: Ledger, customer: str) -> DownstreamCost:
    """The most that each stage after distillation took in the last few runs that it did not fail
    in, and that one of them paid for disks, buckets and transfer."""
    groups = [g for g in ledger.grouped(customer=customer) if g.useful == "useful"]
    seconds = [_seconds(groups, name) for name in AFTER_DISTILL]
    # A machine's volume is kept back by whoever starts one (`planning/ec2_costs.py`).
    kept = (g for g in groups if g.unit in (storage.UNIT, transfer.UNIT) and g.resource != VOLUME)
    return DownstreamCost(seconds=float(total_usd(seconds)), usd=_most(kept, _usd))


def _seconds(groups: Iterable[ChargeGroup], stage: str, runs: int = _RUNS) -> Decimal:
    """The most node-seconds that a stage took in one of the last `runs`; 0 where none has it."""
    of_stage = (g for g in groups if g.unit == UNIT and g.stage == stage)
    return _most(of_stage, lambda group: group.quantity, runs)


def _beside_stages_usd(ledger: Ledger, customer: str) -> tuple[Decimal, Decimal]:
    """The most that one of the last few runs paid for waiting nodes, and for minutes of devices."""
    groups = ledger.grouped(customer=customer)
    known = (UNIT, storage.UNIT, transfer.UNIT)
    waited = (g for g in groups if g.stage == IDLE_STAGE)
    devices = (g for g in groups if g.stage != IDLE_STAGE and g.unit not in known)
    return _most(waited, _usd), _most(devices, _usd)


def _usd(group: ChargeGroup) -> Decimal:
    return group.amount_usd


def _most(
    groups: Iterable[ChargeGroup], amount: Callable[[ChargeGroup], Decimal], runs: int = _RUNS
) -> Decimal:
    """The largest sum of a run, of the last `runs` that have one; 0 where none has."""
    by_run: dict[str, list[ChargeGroup]] = {}
    for group in groups:
        by_run.setdefault(group.run, []).append(group)
    sums = [
        (max(group.last_at for group in its), total_usd(amount(group) for group in its))
        for its in by_run.values()
    ]
    last = sorted((one for one in sums if one[1] > 0), reverse=True)[:runs]
    return max((found for _, found in last), default=Decimal(0))
