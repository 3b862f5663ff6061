"""One PoC run: Prefect runs the DVC stages, then registers, promotes and reports.

A stage is run by `dvc repro --single-item STAGE@CUSTOMER`, so that a run by hand and this flow
are the same thing. Stages over unchanged inputs are not run, and cost nothing. `promote` is
reached through the verdict alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import admission, dvc, effects, runs
from flows.effects import Outcome
from turbo_vaed.config.schema import Params
from turbo_vaed.config.stages import RAY_STAGES, STAGES
from turbo_vaed.errors import CorruptFile, Fault, TurboVaedError
from turbo_vaed.planning.pricing import devices_usd
from turbo_vaed.report.context import Failure
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

TIMEOUT_SECONDS = {
    "validate": 3600,
    "clip": 3600,
    "encode": 6 * 3600,
    "distill": 48 * 3600,
    "evaluate": 3600,
    "export": 3600,
    "gate": 12 * 3600,  # a device may have to be waited for
}
RETRIES = {"encode": 1, "distill": 1, "gate": 1}
"""Where trying again can help: a lost Ray worker, a measurement that was disturbed."""


def retries_of(stage: str, params: Params) -> int:
    """How often a stage is tried again: the gate never where its device is paid for each time."""
    return 0 if stage == "gate" and devices_usd(params) else RETRIES.get(stage, 0)


def is_worth_retrying(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """A fault may pass; a refusal, a user's mistake or a broken file will not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Fault) and not isinstance(error, CorruptFile)


@task(retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def run_stage(
    settings: Settings,
    customer: str,
    stage: str,
    environment: Mapping[str, str],
    force: bool = False,
) -> None:
    """Reproduce one DVC stage; its figures become an artifact."""
    dvc.reproduce(
        settings.root,
        customer,
        stage,
        environment=environment,
        timeout_seconds=TIMEOUT_SECONDS[stage],
        force=force,
    )
    if stage in STAGES:
        try:
            show_figures(settings.root / "work" / customer / stage, customer, stage)
        except Exception:  # the stage is done and paid for; its picture in Prefect is not worth it
            get_run_logger().warning("no Prefect artifact for %s", stage, exc_info=True)


def show_figures(folder: Path, customer: str, stage: str) -> None:
    """The figures that a stage left, as a Prefect artifact."""
    path = folder / "figures.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in figures.items()]
    text = "\n".join([f"## {customer}: {stage}", "", "| figure | value |", "|---|---|", *lines])
    create_markdown_artifact(
        key=f"{customer.replace('_', '-')}-{stage}",
        markdown=text,
        description=f"figures of stage {stage}",
    )


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def register(workspace: Workspace, settings: Settings, run: runs.Run) -> effects.Registered:
    """The package as a version of the customer's model in MLflow, its verdict with it."""
    return effects.register(workspace, settings, run)


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def promote(
    workspace: Workspace, settings: Settings, registered: effects.Registered
) -> effects.Registered:
    """`champion` with a passing verdict over exactly those bytes; else `candidate`."""
    return effects.promote(workspace, settings, registered)


@task(cache_policy=NO_CACHE)
def report(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    registered: effects.Registered | None,
    failure: Failure | None,
) -> effects.Reported:
    """The page for an engineer and for a finance person, of what was reached."""
    return effects.report(workspace, settings, run, registered, failure)


@task(retries=2, retry_delay_seconds=10, cache_policy=NO_CACHE)
def push(settings: Settings, customer: str) -> str:
    """`dvc push` to the configured remote."""
    return dvc.push(settings.root, customer, STAGES)


@flow(name="poc", flow_run_name="poc-{customer}")
def poc_flow(customer: str) -> Outcome:
    """Everything from a folder of videos to a judged, registered package and its report."""
    settings = Settings.from_environment()  # no parameter: Prefect would keep its secrets
    log = get_run_logger()
    workspace = admission.preflight(settings, customer)
    with runs.customer_lock(workspace.work, customer):
        stale = dvc.stale_after_params(workspace, STAGES)
        todo = admission.to_do(workspace, settings, stale)
        if todo is None:
            last = runs.read(workspace.work)
            assert last is not None
            log.info("nothing changed since run %s: no stage to compute", last.run_id)
            return effects.unchanged(workspace, last)
        runs.write(workspace.work, todo.run)
        if todo.why:
            log.info("run %s goes on: %s", todo.run.run_id, todo.why)
        try:
            return _run(workspace, settings, todo.run, todo.stale, todo.forced)
        finally:
            admission.release(settings, todo.run)


def _run(
    workspace: Workspace, settings: Settings, run: runs.Run, stale: list[str], forced: str = ""
) -> Outcome:
    """The stages from the first stale one on, of which DVC runs `forced` whatever it knows."""
    log = get_run_logger()
    reached = stale[0] if stale else "register"
    registered: effects.Registered | None = None
    is_begun = False
    try:
        if stale:
            log.info("%s", admission.estimate(workspace, settings, run, stale))
            effects.start_tracking_idle_nodes(workspace, settings, run)
        is_begun = True
        with _ray_for(settings, stale) as environment:
            for stage in STAGES[STAGES.index(stale[0]) :] if stale else ():
                reached = stage
                told = {**environment, "TURBO_VAED_RUN_ID": run.run_id}
                retries = retries_of(stage, workspace.params)
                attempt = run_stage.with_options(name=stage, retries=retries)
                attempt(settings, workspace.customer, stage, told, stage == forced)
        reached = "register"
        registered = register(workspace, settings, run)
        reached = "promote"
        registered = promote(workspace, settings, registered)
    except Exception as error:
        failed = effects.failure(reached, error, is_begun=is_begun)
        _report_failure(workspace, settings, run, registered, failed, error)
        raise
    written = report(workspace, settings, run, registered, None)
    log.info("dvc push: %s", push(settings, workspace.customer))
    verdict = runs.verdict_sha256(workspace.work)
    done = replace(
        run,
        status="done",
        verdict_sha256=verdict,
        alias=registered.alias,
        measures_again=False,
    )
    runs.write(workspace.work, done)
    return effects.outcome(workspace, run, written.sentence)


def _report_failure(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    registered: effects.Registered | None,
    failed: Failure,
    error: Exception,
) -> None:
    """A report of what was reached; that it fails must not hide the error it is about."""
    log = get_run_logger()
    try:
        written = report(workspace, settings, run, registered, failed)
    except Exception:
        log.exception("run %s failed at %s, and its report could not be written", run, failed.stage)
    else:
        what = f"failed at {failed.stage}" if failed.is_begun else "was not begun"
        log.error("run %s %s", run.run_id, what)
        error.add_note(f"report: {written.path}")


@contextmanager
def _ray_for(settings: Settings, stale: list[str]) -> Iterator[dict[str, str]]:
    """One local Ray for the stages that need it, unless there is a cluster or no need."""
    from turbo_vaed.cluster.session import ray_session

    first = STAGES.index(stale[0]) if stale else len(STAGES)
    needed = any(STAGES.index(stage) >= first for stage in RAY_STAGES)
    if settings.ray_address or not needed:
        yield {}
        return
    with ray_session():
        import ray

        address = ray.get_runtime_context().gcs_address
        yield {"RAY_ADDRESS": address, "TURBO_VAED_OWN_RAY": address}


def start(settings: Settings, customer: str) -> Outcome:
    """Run the flow for one customer and return what it came to.

    Raises:
        TurboVaedError: as the stage that failed; the report of what was reached is written.
    """
    admission.preflight(settings, customer)  # a user's mistake needs no server to be told
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(without_our_tracebacks)
    return poc_flow(customer)


def without_our_tracebacks(record: logging.LogRecord) -> bool:
    """An error that was raised on purpose speaks for itself; any other keeps its traceback."""
    if record.exc_info and isinstance(record.exc_info[1], TurboVaedError):
        record.exc_info = None
    return True
