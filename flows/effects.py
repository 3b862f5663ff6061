"""What a run does once its stages have run: register, promote, report."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flows import runs
from flows.to_do import inconclusive_reason
from turbo_vaed.cluster.nodes import nodes_of, own_node
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.costs import Ledger, summarise
from turbo_vaed.errors import BudgetRefused, Stopped, TurboVaedError
from turbo_vaed.gate import repeat_advice
from turbo_vaed.metering import idle_nodes
from turbo_vaed.metering.storage_charges import charge_arrays, charge_storage
from turbo_vaed.planning.pricing import price_text
from turbo_vaed.planning.worker_files import remove_unused
from turbo_vaed.registry import promotion
from turbo_vaed.report.collect import collect
from turbo_vaed.report.context import Failure, Registration
from turbo_vaed.report.page import write_report
from turbo_vaed.report.wording import headline
from turbo_vaed.roi.measured import cost_of_poc
from turbo_vaed.runtime.files import read_json, sha256_file
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The page, and the sentence that it begins with."""

    path: Path
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    sentence: str
    report: Path | None
    """None where the run was another checkout's."""
    run_id: str
    result: str
    """The verdict: `passes`, `fails` or `inconclusive`; approval by a person is another matter."""
    is_unchanged: bool = False
    """Whether there was nothing to do."""


def outcome(workspace: Workspace, run: runs.Run, sentence: str) -> Outcome:
    """What a run came to, by the verdict in the customer's folder."""
    verdict = read_json(workspace.folder("gate") / "verdict.json")
    if why := inconclusive_reason(workspace):
        sentence += f"\n{repeat_advice(why)}"
    return Outcome(
        sentence=sentence,
        report=workspace.report if workspace.report.is_file() else None,
        run_id=run.run_id,
        result=verdict["result"],
    )


def unchanged(workspace: Workspace) -> Outcome:
    """Where there is nothing to do: the last run stands."""
    run = runs.read(workspace.work)
    assert run is not None
    sentence = f"Nothing has changed since run {run.run_id}: its package is the {run.alias}."
    return replace(outcome(workspace, run, sentence), is_unchanged=True)


def failure(stage: str, error: BaseException, *, is_begun: bool) -> Failure:
    """An error as the report has it: its message, or its class where it has none."""
    message = str(error) or type(error).__name__
    return Failure(
        stage=stage,
        error=message,
        by_budget=isinstance(error, BudgetRefused),
        by_person=isinstance(error, Stopped),
        is_begun=is_begun,
    )


def register(workspace: Workspace, settings: Settings, run: runs.Run) -> Registration:
    """Log the run and its package with MLflow, once for the same package and verdict."""
    evaluation = read_json(workspace.folder("evaluate") / "evaluation.json")
    history = read_json(workspace.folder("distill") / "history.json")
    metrics = {
        f"{who}_{name}_{part}": float(value)
        for who in ("teacher", "student")
        for name, parts in evaluation[who].items()
        for part, value in parts.items()
    }
    retention = evaluation["retention"]  # None where the teacher has nothing to retain
    metrics |= {f"retention_{k}": float(v) for k, v in retention.items() if v is not None}
    metrics["student_parameters"] = float(history["student_parameters"])
    with Ledger.open(settings.ledger_url) as ledger:
        metrics["spent_usd"] = float(ledger.total(run=run.run_id))
    params = {
        f"{section}.{key}": value
        for section in ("clip", "encode", "distill", "gate")
        for key, value in vars(getattr(workspace.params, section)).items()
        if not key.startswith("_")
    }
    verdict = read_json(workspace.folder("gate") / "verdict.json")
    found = promotion.register(
        tracking_uri=settings.mlflow_tracking_uri,
        run_id=run.run_id,
        customer=workspace.customer,
        package_folder=workspace.folder("gate") / "package",
        verdict_path=workspace.folder("gate") / "verdict.json",
        metrics=metrics,
        params=params,
        lineage=lineage(workspace)
        | {key: str(verdict[key]) for key in ("git_revision", "data_sha256")},
        artifacts=[
            workspace.dvc_lock,
            workspace.folder("evaluate") / "evaluation.json",
            workspace.folder("distill") / "history.json",
            workspace.folder("gate") / "measurement.json",
        ],
    )
    uri = settings.mlflow_tracking_uri
    return Registration(
        name=found.name,
        version=found.version,
        alias="",
        mlflow_run=found.mlflow_run_id,
        mlflow_uri="" if "@" in uri else uri,  # it has a password
    )


def promote(workspace: Workspace, settings: Settings, registered: Registration) -> Registration:
    """Let the registry make the version champion, or candidate with the reasons."""
    promoted = promotion.promote(
        tracking_uri=settings.mlflow_tracking_uri,
        customer=workspace.customer,
        version=registered.version,
    )
    return replace(registered, alias=promoted.alias, reasons=promoted.reasons)


def report(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    registered: Registration | None,
    failure: Failure | None,
) -> Reported:
    """Write the page of the stages that ran, into work/CUSTOMER/report.

    A run that was not started leaves the page of the last one as it is and has a page of its own.
    """
    params = workspace.params
    with Ledger.open(settings.ledger_url) as ledger:
        now = datetime.now(UTC)
        _fetch_event_log(workspace, settings)
        charge_storage(workspace, ledger, settings, run=run.run_id, began=run.started_at, ended=now)
        _settle_arrays(workspace, settings, ledger, run, now)
        _charge_idle_nodes(workspace, settings, ledger, run)
        costs = summarise(ledger, run.run_id, params.budget.run_usd)
        cost = cost_of_poc(ledger, workspace.customer)
    context = collect(
        workspace.work,
        run_id=run.run_id,
        started=run.started_at,
        finished=datetime.now(UTC),
        costs=costs,
        price=price_text(params, settings),
        lineage=lineage(workspace),
        registration=registered,
        failure=failure,
        customer=workspace.customer,
        use_case=params.use_case,
        assumptions=params.roi,
        cost_of_poc=cost,
    )
    is_begun = failure is None or failure.is_begun
    path = write_report(context, workspace.report if is_begun else workspace.not_started)
    if is_begun:
        workspace.not_started.unlink(missing_ok=True)
    return Reported(path=path, sentence=headline(context))


def start_tracking_idle_nodes(workspace: Workspace, settings: Settings, run: runs.Run) -> None:
    """Count a cluster's nodes as idle from here on until a stage uses them. Time since the loss of
    an earlier driver of this run is charged as wasted.

    Raises:
        BudgetRefused: a node's price is not known.
        Unreachable: the cluster does not answer.
    """
    if not settings.on_a_cluster:
        return
    nodes = nodes_of(workspace.params, settings, "distill")
    seen = workspace.work / idle_nodes.TRACKING_FILE
    with ray_session(settings.ray_address), Ledger.open(settings.ledger_url) as ledger:
        own = own_node()
        idle_nodes.start_tracking(
            ledger, nodes, seen, run=run.run_id, customer=workspace.customer, own_node=own
        )


def _fetch_event_log(workspace: Workspace, settings: Settings) -> None:
    """Fetch the event log if another checkout trained this run: checkpoints are charged by it."""
    url = settings.shared_checkpoints(workspace.customer)
    if url is None:
        return
    from turbo_vaed.distill.checkpoints import Store  # takes PyTorch
    from turbo_vaed.distill.shared_log import fetch_log

    try:
        fetch_log(workspace.progress_file, Store(url), patience_seconds=0.0)
    except (TurboVaedError, OSError) as error:  # the report is worth more than this charge
        log.warning("checkpoints are charged as far as this checkout knows them: %s", error)


def _settle_arrays(
    workspace: Workspace, settings: Settings, ledger: Ledger, run: runs.Run, now: datetime
) -> None:
    """Charge what lies in `TURBO_VAED_ARRAYS`, and remove what no stage reads any more."""
    try:
        charge_arrays(workspace, ledger, settings, run=run.run_id, began=run.started_at, ended=now)
        remove_unused(workspace, settings)
    except Exception as error:  # the report is worth more than this charge
        log.warning("what lies in TURBO_VAED_ARRAYS is not charged to this run: %s", error)


def _charge_idle_nodes(
    workspace: Workspace, settings: Settings, ledger: Ledger, run: runs.Run
) -> None:
    """Charge a cluster's idle nodes up to the end of the run, but for those that have left."""
    seen = workspace.work / idle_nodes.TRACKING_FILE
    if not settings.on_a_cluster or not seen.is_file():
        return
    nodes = nodes_of(workspace.params, settings, "distill")
    try:
        with ray_session(settings.ray_address):
            own = own_node()
            idle_nodes.charge_idle_nodes(
                ledger, nodes, seen, run=run.run_id, customer=workspace.customer, own_node=own
            )
    except Exception:  # the report is worth more than this charge, whatever Ray says
        log.warning("the cluster's nodes are charged to its last stage only", exc_info=True)
    finally:
        seen.unlink(missing_ok=True)  # no run has them until the next attempt


def lineage(workspace: Workspace) -> dict[str, str]:
    """What the run was made with that neither verdict nor package records."""
    lock = workspace.dvc_lock
    return {
        "python": platform.python_version(),
        "use_case": workspace.params.use_case,
        "teacher": workspace.params.encode.teacher_weights,
    } | ({"dvc_lock_sha256": sha256_file(lock)} if lock.is_file() else {})
