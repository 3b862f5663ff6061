"""One PoC run: Prefect runs the DVC stages, then registers, promotes and reports.

A stage is run by `dvc repro --single-item STAGE@CUSTOMER`, so that a run by hand and this flow
are the same thing. Stages over unchanged inputs are not run, and cost nothing. `promote` is
reached through the verdict alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import dvc, effects, runs
from turbo_vaed.errors import Fault, TurboVaedError
from turbo_vaed.poc import STAGES, Poc
from turbo_vaed.settings import Settings

TIMEOUT_SECONDS = {
    "params": 120,
    "validate": 3600,
    "clip": 3600,
    "encode": 6 * 3600,
    "distill": 48 * 3600,
    "evaluate": 3600,
    "export": 3600,
    "gate": 3600,
}
RETRIES = {"encode": 1, "distill": 1, "gate": 1}
"""Where trying again can help: a lost Ray worker, a measurement that was disturbed."""
RAY_STAGES = ("encode", "distill")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    sentence: str
    report: Path | None
    run_id: str
    ran: tuple[str, ...]
    """The stages that were computed; empty where nothing had changed."""


def is_worth_retrying(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """A fault may pass; a refusal or a user's mistake will not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Fault)


@task(retry_delay_seconds=5, retry_condition_fn=is_worth_retrying)
def run_stage(
    settings: Settings, customer: str, stage: str, environment: Mapping[str, str]
) -> bool:
    """Reproduce one DVC stage; True where it was computed. Its figures become an artifact."""
    done = dvc.reproduce(
        settings.root,
        customer,
        stage,
        environment=environment,
        timeout_seconds=TIMEOUT_SECONDS[stage],
    )
    if stage in STAGES:
        show_figures(settings.root / "work" / customer / stage, customer, stage)
    return done.ran


def show_figures(folder: Path, customer: str, stage: str) -> None:
    """The figures that a stage left, as a Prefect artifact."""
    path = folder / "figures.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in figures.items()]
    create_markdown_artifact(
        key=f"{customer.replace('_', '-')}-{stage}",
        markdown="\n".join(
            [f"## {customer}: {stage}", "", "| figure | value |", "|---|---|", *lines]
        ),
        description=f"figures of stage {stage}",
    )


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying)
def register(poc: Poc, settings: Settings, run: runs.Run) -> effects.Registered:
    """The package as a version of the customer's model in MLflow, its verdict with it."""
    return effects.register(poc, settings, run)


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying)
def promote(poc: Poc, settings: Settings, registered: effects.Registered) -> effects.Registered:
    """`champion` with a passing verdict over exactly those bytes; else `candidate`."""
    return effects.promote(poc, settings, registered)


@task
def report(
    poc: Poc,
    settings: Settings,
    run: runs.Run,
    registered: effects.Registered | None,
    failure: tuple[str, str] | None,
) -> effects.Reported:
    """The page for an engineer and for a finance person, of what was reached."""
    return effects.report(poc, settings, run, registered, failure)


@task(retries=2, retry_delay_seconds=10)
def push(settings: Settings, customer: str) -> str:
    """`dvc push` to the configured remote."""
    return dvc.push(settings.root, customer, STAGES)


@flow(name="poc", flow_run_name="poc-{customer}", validate_parameters=False)
def poc_flow(settings: Settings, customer: str) -> Outcome:
    """Everything from a folder of videos to a judged, registered package and its report."""
    log = get_run_logger()
    poc = effects.preflight(settings, customer)
    stale = _resolve_params_and_status(settings, customer)
    last = runs.read(poc.work)
    if last is not None and last.status == "done" and not stale and poc.report.is_file():
        log.info("nothing changed since run %s: no stage to compute", last.run_id)
        registered = promote(poc, settings, register(poc, settings, last))
        sentence = f"Nothing changed since run {last.run_id}: it is {registered.alias}."
        return Outcome(sentence=sentence, report=poc.report, run_id=last.run_id, ran=())
    run = last if last is not None and last.status == "open" else runs.begin(poc.work, customer)
    reached, ran = "validate", []
    try:
        with _ray_for(settings, stale) as environment:
            for stage in STAGES[STAGES.index(stale[0]) :] if stale else ():
                reached = stage
                told = {**environment, "TURBO_VAED_RUN_ID": run.run_id}
                attempt = run_stage.with_options(name=stage, retries=RETRIES.get(stage, 0))
                if attempt(settings, customer, stage, told):
                    ran.append(stage)
        reached = "register"
        registered = register(poc, settings, run)
        reached = "promote"
        registered = promote(poc, settings, registered)
    except TurboVaedError as error:
        written = report(poc, settings, run, None, (reached, str(error)))
        log.error("run %s failed at %s; report: %s", run.run_id, reached, written.path)
        raise
    written = report(poc, settings, run, registered, None)
    said = push(settings, customer)
    log.info("dvc push: %s", said)
    runs.write(poc.work, replace(run, status="done"))
    return Outcome(
        sentence=written.sentence, report=written.path, run_id=run.run_id, ran=tuple(ran)
    )


def _resolve_params_and_status(settings: Settings, customer: str) -> list[str]:
    """Write the resolved params where they changed; the stages that are stale after that."""
    stale = dvc.stale_stages(settings.root, customer, ("params", *STAGES))
    if "params" not in stale:
        return stale
    run_stage.with_options(name="params")(settings, customer, "params", {})
    return dvc.stale_stages(settings.root, customer, STAGES)


@contextmanager
def _ray_for(settings: Settings, stale: list[str]) -> Iterator[dict[str, str]]:
    """One local Ray for the stages that need it, unless there is a cluster or no need."""
    from turbo_vaed.dataset.ray_session import ray_session

    first = STAGES.index(stale[0]) if stale else len(STAGES)
    needed = any(STAGES.index(stage) >= first for stage in RAY_STAGES)
    if settings.ray_address or not needed:
        with nullcontext():
            yield {}
        return
    with ray_session():
        import ray

        yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def start(settings: Settings, customer: str) -> Outcome:
    """Run the flow for one customer and return what it came to.

    Raises:
        TurboVaedError: as the stage that failed; the report of what was reached is written.
    """
    effects.preflight(settings, customer)  # a user's mistake needs no server to be told
    return poc_flow(settings, customer)
