"""What there is to do for a customer, and whether a run of it may begin."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

from flows import dvc, runs
from turbo_vaed.config import pipeline
from turbo_vaed.config.stages import STAGES, UP_TO_DISTILL
from turbo_vaed.costs import (
    Ledger,
    SpendingLimit,
    format_usd,
    outbox,
    release_reservation,
    require_budget_left,
    reservation_of,
    spending_limit,
)
from turbo_vaed.costs.estimate import Estimate
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.dataset.manifest import files_in
from turbo_vaed.distill.job import which_student
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.export import RUNTIMES
from turbo_vaed.gate import TIMED, VERDICT_NAME, read_verdict
from turbo_vaed.gate.packages import check_device
from turbo_vaed.planning.compatibility import check_params
from turbo_vaed.planning.environment import check_environment
from turbo_vaed.planning.estimate import estimate_run, least_usd
from turbo_vaed.planning.pricing import limits_of, price_of
from turbo_vaed.planning.quote import cheapest_elsewhere
from turbo_vaed.registry import client
from turbo_vaed.runtime.files import read_json
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

log = logging.getLogger(__name__)

BEGUN = "begun.json"
"""In the customer's folder: the last run, and which student it was to distil from when on."""
_MORE = Decimal("1.05")
"""Times what a month's limit had left: for less it is not worth to begin again."""


def preflight(settings: Settings, customer: str) -> Workspace:
    """What must hold before anything is computed or paid.

    Raises:
        UserError: params that are not valid, no folder of videos, an exporter not installed; no
            git, or a folder that cannot be written.
        BudgetRefused: this machine's price is unknown.
        Unreachable: the ledger or MLflow does not answer.
        Fault: the disk is nearly full.
    """
    workspace = Workspace.load(settings.root, customer)
    if not workspace.source.is_dir():
        raise UserError(
            f"customers.{customer}.source: no folder {workspace.source}"
            + ("; make setup fetches the demo videos" if customer == "demo" else "")
        )
    for target in check_params(workspace):
        RUNTIMES[target.runtime].check()
    check_device(workspace)
    price_of(workspace.params, settings, "gate")
    check_environment(settings.root, workspace.work)
    with Ledger.open(settings.ledger_url) as ledger:
        outbox.post(ledger, settings.outbox_folder)
    client.open_tracking(settings.mlflow_tracking_uri)
    pipeline.write(settings.root, customer, workspace.params.source)
    return workspace


def inconclusive_reason(workspace: Workspace) -> str:
    """Why the verdict is inconclusive, where measuring again may settle it: the machine was busy,
    say. Empty where it passes or fails, or where quality is inconclusive, too: the same frames
    would be measured again."""
    verdict = read_verdict(workspace.folder("gate") / VERDICT_NAME)
    if verdict.result != "inconclusive" or any(one.name not in TIMED for one in verdict.failed):
        return ""
    choice = read_json(workspace.folder("gate") / "choice.json")
    (chosen,) = (one for one in choice["candidates"] if one["name"] == choice["chosen"])
    return str(chosen.get("unreliable_reason", ""))


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """What a flow has before it."""

    run: runs.Run
    """Not written yet."""
    stale: list[str]
    """Stages that are to be run, and with the first one all that follow it."""
    forced: str = ""
    """The one that DVC runs whatever it knows."""
    why: str = ""
    """An old run goes on although nothing has changed."""

    @property
    def stages(self) -> tuple[str, ...]:
        """All that are run."""
        return STAGES[STAGES.index(self.stale[0]) :] if self.stale else ()


def to_do_now(workspace: Workspace, settings: Settings) -> ToDo | None:
    """As `to_do`, by the configuration as it is.

    Raises:
        Refused: a run of the customer is going on.
    """
    with runs.customer_lock(workspace.work, workspace.customer):
        return to_do(workspace, settings, dvc.stale_after_params(workspace, STAGES))


def to_do(workspace: Workspace, settings: Settings, stale: list[str]) -> ToDo | None:
    """The same for a flow and for whoever starts a machine for it; None where the last run stands:
    nothing is stale and its gate has decided.

    Args:
        stale: by DVC.
    """
    if not set(stale) & set(UP_TO_DISTILL):
        run = run_with_more_room(workspace, settings)
        if run is not None:
            why = "its month's limit leaves more room by now"
            return ToDo(run=run, stale=["distill"], forced="distill", why=why)
    run = run_to_do(workspace, stale)
    if run is None:
        return None
    if not run.measures_again:
        return ToDo(run=run, stale=stale)
    # DVC would take the inconclusive verdict out of its cache.
    why = "" if stale else "the gate measures again"
    return ToDo(run=run, stale=stale or ["gate"], forced="gate", why=why)


def run_to_do(workspace: Workspace, stale: list[str]) -> runs.Run | None:
    """The run that goes on, or a fresh one; None where the last one stands. One whose gate could
    not tell measures again."""
    last = runs.read(workspace.work)
    if last is None or (last.status == "done" and (stale or not workspace.report.is_file())):
        return runs.fresh(workspace.customer)
    if last.status == "open":
        return last
    if last.verdict_sha256 != runs.verdict_sha256(workspace.work):
        return runs.fresh(workspace.customer)  # stages were run by hand since
    return (
        replace(last, status="open", measures_again=True)
        if inconclusive_reason(workspace)
        else None
    )


def run_with_more_room(workspace: Workspace, settings: Settings) -> runs.Run | None:
    """The last run, where a month's limit stopped its training and leaves it more by now: the month
    is over, or the limit larger. It goes on from its checkpoint, within its own budget."""
    path, last = workspace.folder("distill") / "history.json", runs.read(workspace.work)
    if last is None or not path.is_file():
        return None
    history = read_json(path)
    if history["stopped"] != "budget" or history["limited_to_usd"] is None:
        return None
    with Ledger.open(settings.ledger_url) as ledger:
        limits, now = limits_of(workspace.params), datetime.now(UTC)
        found = spending_limit(ledger, limits, run=last.run_id, customer=workspace.customer, at=now)
        is_its = any(group.stage == "distill" for group in ledger.grouped(run=last.run_id))
    has_more = found.usd > Decimal(history["limited_to_usd"]) * _MORE
    return replace(last, status="open") if is_its and has_more else None


def preview(settings: Settings, customer: str) -> str:
    """What `turbo-vaed poc CUSTOMER` would do now and what that would cost, in words. Nothing is
    run but stage `params`, which costs nothing.

    Raises: as `preflight` and `estimate`.
    """
    workspace = preflight(settings, customer)
    todo = to_do_now(workspace, settings)
    if todo is None:
        return "Nothing changed since the last run: nothing would be run."
    what = f"Of {customer} {', '.join(todo.stages) or 'no stage'} would be run"
    if todo.why:
        what += f", for {todo.why}"
    if not todo.stale:
        return f"{what}; the last run is registered and reported."
    return f"{what}; {estimate(workspace, settings, todo.run, todo.stale, is_begun=False)}."


def estimate(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    stale: list[str],
    *,
    is_begun: bool = True,
) -> str:
    """What is known before a run of what it will cost, in words.

    What follows a stale stage counts with it, for it is made from it. What the run has to keep back
    of a month that others share is in the ledger from here on, until `release`; that of one that is
    refused never was.

    Args:
        is_begun: false for one that is only asked about: nothing is kept of it.

    Raises:
        BudgetRefused: a price is unknown; or what is to be done cannot fit what the run may still
            spend. Training that this run has begun goes on, and stops by itself.
        Unreachable: the cluster on which a stage would run.
    """
    stages = STAGES[STAGES.index(stale[0]) :]
    for stage in stages:
        price_of(workspace.params, settings, stage)
    with Ledger.open(settings.ledger_url) as ledger:
        spent_usd = ledger.total(run=run.run_id)
        reservation = reservation_of(
            ledger, limits_of(workspace.params), run=run.run_id, customer=workspace.customer
        )
        goes_on = "distill" in stages and has_begun(workspace, run, ledger)

        def require_fit(may_spend: SpendingLimit) -> Estimate | None:
            require_budget_left(may_spend, spent_usd=spent_usd)
            if goes_on:
                return None
            return estimate_run(
                workspace,
                settings,
                ledger,
                stages=stages,
                may_spend_usd=may_spend.usd,
                of=may_spend.by,
                spent_usd=spent_usd,
                cheaper=partial(cheapest_elsewhere, workspace, settings),
                is_kept=is_begun,
            )

        may_spend = reservation.spending_limit()
        found = require_fit(may_spend)  # one that is refused tells nobody
        if is_begun:
            most = spent_usd + least_usd(workspace, settings, ledger, stages)
            least = most if found is None else min(most, spent_usd + found.low_usd)
            then = reservation.claim(most, least_usd=least)
            if then.usd < may_spend.usd:  # another one came in between
                may_spend, found = then, require_fit(then)
    if goes_on:
        return f"run {run.run_id} goes on from what its training has saved"
    if "distill" in stages and is_begun:
        note_begun(workspace, run)
    left = f"{format_usd(may_spend.usd - spent_usd)} are left of {may_spend.by}"
    if found is None:
        return f"no estimate, for no worker could be timed; {left}"
    return f"estimated at {found}; {left}"


def release(settings: Settings, run: runs.Run) -> None:
    """The run is over, or ended for now: it keeps nothing back of a month any more. Who has started
    its machine does this when all of that is charged."""
    if settings.machine_overhead_usd:
        return
    try:
        with Ledger.open(settings.ledger_url) as ledger:
            release_reservation(ledger, run.run_id)
    except TurboVaedError as error:
        log.warning("%s", error)


def note_begun(workspace: Workspace, run: runs.Run) -> None:
    """Keep that the run may distil this student of these videos from now on. A machine that is
    started for it takes this with it, so that what is lost with the machine need not be estimated
    anew."""
    allowed, key = _allowed(workspace, run), _student_key(workspace)
    if not allowed or allowed[-1][0] != key:
        allowed.append((key, datetime.now(UTC).isoformat()))
    text = json.dumps({"run": run.run_id, "allowed": allowed}, indent=1)
    (workspace.work / BEGUN).write_text(text + "\n")


def has_begun(workspace: Workspace, run: runs.Run, ledger: Ledger) -> bool:
    """Whether the run was charged for distilling while it was to distil this student of these
    videos, and so goes on from what it saved: its clips and latents are the same when they are made
    again."""
    allowed, key = _allowed(workspace, run), _student_key(workspace)
    ends = [datetime.fromisoformat(since) for _, since in allowed[1:]] + [None]
    return any(
        group.stage == "distill" and group.unit == UNIT
        for (student, since), until in zip(allowed, ends, strict=False)
        if student == key
        for group in ledger.grouped(
            run=run.run_id, since=datetime.fromisoformat(since), until=until
        )
    )


def _allowed(workspace: Workspace, run: runs.Run) -> list[tuple[str, str]]:
    """Which student this run was to distil from when on, as `BEGUN` holds it."""
    path = workspace.work / BEGUN
    kept = read_json(path) if path.is_file() else {}
    found = kept.get("allowed", []) if kept.get("run") == run.run_id else []
    return [(key, since) for key, since in found]


def _student_key(workspace: Workspace) -> str:
    """Of a student and what it is made from."""
    told = {
        "student": which_student(workspace.params.distill),
        "clip": asdict(workspace.params.clip),
        "encode": asdict(workspace.params.encode),
        "videos": [
            (str(path.relative_to(workspace.source)), path.stat().st_size)
            for path in files_in(workspace.source)
            if path.is_file()
        ],
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
