"""One PoC run: Prefect runs the DVC stages, then registers, promotes and reports.

A stage is run by `dvc repro --single-item customers/NAME/dvc.yaml:STAGE`, so that a run by hand and
this flow are the same thing. Stages over unchanged inputs are not run, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run as prefect_run
from prefect.states import Cancelled
from prefect.tasks import Task

from flows import (
    admission,
    budget_alarm,
    customer_state,
    dvc,
    effects,
    late,
    open_run,
    outputs,
    publish,
    runs,
    states,
)
from flows.effects import Outcome
from flows.open_run import Heartbeat, Reached
from flows.to_do import ToDo, to_do
from turbo_vaed.config.schema import Params
from turbo_vaed.config.stages import RAY_STAGES, STAGES
from turbo_vaed.errors import Busy, CorruptFile, Fault, Stopped, TimedOut, Unreachable
from turbo_vaed.planning.pricing import devices_usd
from turbo_vaed.report.context import Failure, Registration
from turbo_vaed.runtime import logs
from turbo_vaed.runtime.files import read_json
from turbo_vaed.runtime.interrupts import signals_interrupt
from turbo_vaed.settings import Settings, set_environment_defaults
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
    """A fault may pass; a refusal, a user's mistake, a broken file or a timeout will not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Fault) and not isinstance(error, CorruptFile | TimedOut)


@contextmanager
def stoppable(step: str) -> Iterator[None]:
    """In the block of a task, signals are interrupts, which Prefect's and Ray's handlers would not
    make of them; and an interrupt is no crash.

    Raises:
        Stopped: the step was interrupted.
    """
    try:
        with signals_interrupt():
            yield
    except KeyboardInterrupt:
        raise Stopped(f"{step} was stopped") from None


@task(retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def run_stage(
    settings: Settings,
    customer: str,
    stage: str,
    environment: Mapping[str, str],
    force: bool = False,
) -> None:
    """Reproduce one DVC stage; its figures become an artifact."""
    with stoppable(stage):
        dvc.reproduce(
            settings.root,
            customer,
            stage,
            environment=environment,
            timeout_seconds=TIMEOUT_SECONDS[stage],
            force=force,
        )
    try:
        publish_figures(settings.root / "work" / customer / stage, customer, stage)
    except Exception:  # the stage is done and paid for
        get_run_logger().warning("no Prefect artifact for %s", stage, exc_info=True)


def publish_figures(folder: Path, customer: str, stage: str) -> None:
    """The figures of a stage as a Prefect artifact."""
    figures = read_json(folder / "figures.json")
    lines = [f"| {key.replace('_', ' ')} | {value} |" for key, value in figures.items()]
    text = "\n".join([f"## {customer}: {stage}", "", "| figure | value |", "|---|---|", *lines])
    create_markdown_artifact(
        key=f"{customer.replace('_', '-')}-{stage}",
        markdown=text,
        description=f"figures of stage {stage}",
    )


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def register(workspace: Workspace, settings: Settings, run: runs.Run) -> Registration:
    """The package as a version of the customer's model in MLflow, its verdict with it."""
    with stoppable("register"):
        return effects.register(workspace, settings, run)


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE)
def promote(workspace: Workspace, settings: Settings, registered: Registration) -> Registration:
    """`champion` with a passing verdict over exactly those bytes; else `candidate`."""
    with stoppable("promote"):
        return effects.promote(workspace, settings, registered)


@task(cache_policy=NO_CACHE)
def report(
    workspace: Workspace,
    settings: Settings,
    run: runs.Run,
    registered: Registration | None,
    failure: Failure | None,
) -> effects.Reported:
    """The page for an engineer and for a finance person, of the stages that ran."""
    with stoppable("report"):
        return effects.report(workspace, settings, run, registered, failure)


@task(
    retries=2, retry_delay_seconds=10, retry_condition_fn=is_worth_retrying, cache_policy=NO_CACHE
)
def push(settings: Settings, customer: str, stages: tuple[str, ...] = STAGES) -> str:
    """`dvc push` of the outputs of stages to the configured remote."""
    with stoppable("push"):
        return dvc.push(settings.root, customer, stages)


@flow(name="poc", flow_run_name="poc-{customer}")
def poc_flow(customer: str) -> State[Outcome]:
    """Everything from a folder of videos to a judged, registered package and its report.

    Its state says by its name what it came to: Passed, Unchanged, Skipped; GateFailed,
    Inconclusive, Refused, Fault; Stopped.
    """
    set_environment_defaults()  # a worker starts it without the command line
    logs.of_run(customer)
    flow_run = str(prefect_run.id)
    try:
        with signals_interrupt():
            found = ended(customer, flow_run)
            try:
                publish.after_run(customer, found)
            except KeyboardInterrupt:  # what the run came to stays
                get_run_logger().warning("%s was stopped while it was published", customer)
            if found.is_cancelled() or not open_run.is_cancelled(flow_run):
                return found
            # Cancelled when it had ended: Prefect takes no other state then.
            return Cancelled(name="Stopped", message=found.message, data=found.data)
    except KeyboardInterrupt:
        return states.state_of_failure(Stopped("the run was stopped; run the same command again"))


def ended(customer: str, flow_run: str) -> State[Outcome]:
    """Run a customer, or skip it; the state of what came of it."""
    try:
        settings = Settings.from_environment()  # no parameter: Prefect would keep its secrets
        if why := late.why_this_is_skipped(settings, customer):
            return states.skipped(customer, why)
        return states.state_of(run_poc(settings, customer))
    except Busy as error:
        if late.is_scheduled(flow_run):
            return states.skipped(customer, str(error))
        return states.state_of_failure(error)
    except Exception as error:
        return states.state_of_failure(error)


def run_poc(settings: Settings, customer: str) -> Outcome:
    """What the flow does; see there.

    Raises:
        Stopped: a person or a supervisor stopped it.
        TurboVaedError: as the step that failed; a report of the stages that ran is written.
    """
    workspace = admission.opened(settings, customer)
    reached = Reached(step="its start")
    with (
        runs.customer_lock(workspace.work, customer),
        open_run.acquired(settings, customer, reached) as heartbeat,
    ):
        try:
            if customer_state.fetch(workspace, heartbeat.open_runs):
                get_run_logger().info("%s last ran in another checkout", customer)
            todo = to_do(workspace, settings, outputs.stale_stages(workspace))
            if todo is None:
                share(workspace, settings, heartbeat)
                return effects.unchanged(workspace)
            admission.require_ready(workspace, settings)
            if todo.why:
                get_run_logger().info("resuming run %s: %s", todo.run.run_id, todo.why)
            reached.run = todo.run.run_id
            reached.step = todo.stages[0] if todo.stages else "register"
            open_run.tag(reached, customer)
            return complete(workspace, settings, todo, reached, heartbeat)
        except KeyboardInterrupt:
            raise stopped(reached, heartbeat) from None
        finally:
            heartbeat.end_interrupts()
            if reached.run and not heartbeat.is_lost:
                admission.release(settings, reached.run)


def complete(
    workspace: Workspace, settings: Settings, todo: ToDo, reached: Reached, heartbeat: Heartbeat
) -> Outcome:
    """Run the stages that are to do; register, promote and report what they made; push it.

    Raises:
        Stopped: a person or a supervisor stopped it.
        TurboVaedError: as the step that failed; a report of the stages that ran is written.
    """
    log, run = get_run_logger(), todo.run

    def begin(step: str) -> None:
        reached.step = step
        try:
            heartbeat.poll()  # a run that was cut off must not act for the one that took its place
        except Unreachable as error:
            log.warning("%s begins, although the ledger does not answer: %s", step, error)

    try:
        with budget_alarm.watched(workspace, settings, run.run_id):
            run_stages(workspace, settings, todo, reached, heartbeat)
        begin("register")
        reached.registered = register(workspace, settings, run)
        begin("promote")
        reached.registered = promote(workspace, settings, reached.registered)
    except (Exception, KeyboardInterrupt) as error:
        heartbeat.end_interrupts()
        failed = stopped(reached, heartbeat) if is_stop(error) else error
        with suppress(Unreachable):
            heartbeat.poll()  # another run may have taken its place
        if not heartbeat.is_lost:
            report_failure(workspace, settings, run, reached, failed)
            customer_state.save(workspace, heartbeat)
        if failed is error:
            raise
        raise failed from None
    try:
        begin("report")
        reported = report(workspace, settings, run, reached.registered, None)
        begin("push")
        log.info("dvc push: %s", push(settings, workspace.customer))
    except (Stopped, KeyboardInterrupt):
        raise stopped(reached, heartbeat) from None
    verdict, alias = runs.verdict_sha256(workspace.work), reached.registered.alias
    runs.write(
        workspace.work,
        replace(run, status="done", verdict_sha256=verdict, alias=alias, measures_again=False),
    )
    customer_state.save(workspace, heartbeat)
    return effects.outcome(workspace, run, reported.sentence)


def is_stop(error: BaseException) -> bool:
    """Whether a person or a supervisor ended what was going on."""
    return isinstance(error, KeyboardInterrupt | Stopped)


def stopped(reached: Reached, heartbeat: Heartbeat) -> Stopped:
    """The end of a run that was stopped: where, by whom, and what to do."""
    by = f" ({heartbeat.stopped_by})" if heartbeat.stopped_by else ""
    return Stopped(f"{reached.step} was stopped{by}; run the same command again to resume")


def run_stages(
    workspace: Workspace, settings: Settings, todo: ToDo, reached: Reached, heartbeat: Heartbeat
) -> None:
    """Admit the run, and run its stages in order; `reached` follows. What takes long to make is
    pushed as soon as it is made, so that another machine can go on from it.

    Raises:
        BudgetRefused: the estimate does not fit the budget.
        TurboVaedError: as the stage that failed.
    """
    if todo.stale:
        estimate = admission.admit(workspace, settings, todo)
        get_run_logger().info("%s", estimate)
        effects.start_tracking_idle_nodes(workspace, settings, todo.run)
    reached.is_begun = True
    runs.write(workspace.work, todo.run)  # a run that was refused leaves the last one as it is
    customer_state.save(workspace, heartbeat)
    if todo.stages:
        outputs.pull_inputs(workspace, todo.stages[0])
    for on_ray, stages in groupby(todo.stages, lambda stage: stage in RAY_STAGES):
        ray: AbstractContextManager[dict[str, str]]
        ray = own_ray(settings) if on_ray else nullcontext({})
        with ray as environment:
            for stage in stages:
                reached.step = stage
                retries = retries_of(stage, workspace.params)
                run_stage.with_options(name=stage, retries=retries)(
                    settings,
                    workspace.customer,
                    stage,
                    {
                        **environment,
                        "TURBO_VAED_RUN_ID": todo.run.run_id,
                        "TURBO_VAED_TOKEN": str(heartbeat.token),
                    },
                    force=stage == todo.forced,
                )
                if stage in RAY_STAGES:
                    push_early(settings, workspace.customer, stage)
                customer_state.save(workspace, heartbeat)


def push_early(settings: Settings, customer: str, stage: str) -> None:
    """Push what is made up to a stage, so that another machine can go on from it; the push at the
    end of the run makes up for one that fails."""
    try:
        push(settings, customer, STAGES[: STAGES.index(stage) + 1])
    except Stopped:
        raise
    except Exception as error:
        get_run_logger().warning("another machine could not go on from %s: %s", stage, error)


def share(workspace: Workspace, settings: Settings, heartbeat: Heartbeat) -> None:
    """Let other checkouts find what the last run here has made, where they cannot: it ran before
    there was a place for that, or the ledger did not answer at its end."""
    try:
        if not customer_state.is_saved(workspace, heartbeat.open_runs):
            dvc.push(settings.root, workspace.customer, STAGES)
            customer_state.save(workspace, heartbeat)
    except Exception as error:  # nothing has changed for this one
        get_run_logger().warning("other checkouts do not find %s: %s", workspace.customer, error)


@contextmanager
def own_ray(settings: Settings) -> Iterator[dict[str, str]]:
    """A local Ray where there is no cluster; the environment by which stages find it.

    It starts once data are known to suffice, and ends before the gate measures beside it.
    """
    if settings.ray_address:
        yield {}
        return
    from turbo_vaed.cluster.session import ray_session

    with ray_session():
        import ray

        address = ray.get_runtime_context().gcs_address
        yield {
            "RAY_ADDRESS": address,
            "TURBO_VAED_OWN_RAY": address,
        }


def report_failure(
    workspace: Workspace, settings: Settings, run: runs.Run, reached: Reached, error: BaseException
) -> None:
    """Write a report of the stages that ran; if that fails, the run's error must not be lost."""
    log = get_run_logger()
    failure = effects.failure(reached.step, error, is_begun=reached.is_begun)
    try:  # not as a task: a flow that was cancelled starts none
        reported = effects.report(workspace, settings, run, reached.registered, failure)
    except Exception:
        log.exception("the report of run %s could not be written", run.run_id)
    else:
        error.add_note(f"report: {reported.path}")
    ended = "was stopped" if failure.by_person else "failed"
    what = f"{ended} at {reached.step}" if reached.is_begun else "was not started"
    log.error("run %s %s", run.run_id, what)
