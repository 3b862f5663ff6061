"""Whether a run may begin: what must hold before it, what it will cost, and whether that fits."""

from __future__ import annotations

import logging
from functools import partial

from flows.to_do import ToDo, note_begun, to_do_now
from turbo_vaed.cluster.nodes import price_of
from turbo_vaed.config.stages import RAY_STAGES
from turbo_vaed.costs import (
    Ledger,
    format_usd,
    outbox,
    release_reservation,
    require_budget_left,
    reservation_of,
)
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.export import RUNTIMES
from turbo_vaed.gate.packages import check_device
from turbo_vaed.planning.compatibility import check_params
from turbo_vaed.planning.environment import check_environment
from turbo_vaed.planning.estimate import RunFacts, estimate_run, require_fit, save_estimate
from turbo_vaed.planning.history import past_runs
from turbo_vaed.planning.pricing import limits_of, run_prices
from turbo_vaed.planning.quote import cheapest_elsewhere
from turbo_vaed.planning.worker_files import check_reach
from turbo_vaed.registry import client
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

log = logging.getLogger(__name__)


def preflight(settings: Settings, customer: str) -> Workspace:
    """Check what must hold before anything is computed or paid.

    Raises:
        UserError: invalid params, no folder of videos, an exporter that is not installed, no git,
            or a folder that cannot be written.
        BudgetRefused: this machine's price is unknown.
        Unreachable: the ledger or MLflow does not answer.
        Fault: the disk is nearly full.
    """
    workspace = Workspace.load(settings.root, customer)
    check_configuration(workspace, settings)
    _check_place(workspace, settings)
    client.open_tracking(settings.mlflow_tracking_uri)
    return workspace


def opened(settings: Settings, customer: str) -> Workspace:
    """The part of `preflight` that finding out what there is to do rests on: it takes neither
    PyTorch nor MLflow, whose imports were nearly half of what the flow took to import.

    Raises: as `preflight`.
    """
    workspace = Workspace.load(settings.root, customer)
    check_source(workspace)
    _check_place(workspace, settings)
    return workspace


def _check_place(workspace: Workspace, settings: Settings) -> None:
    check_environment(settings.root, workspace.work)
    with Ledger.open(settings.ledger_url) as ledger:
        outbox.post(ledger, settings.outbox_folder)


def require_ready(workspace: Workspace, settings: Settings) -> None:
    """The other part of `preflight`.

    Raises: as `preflight`.
    """
    check_configuration(workspace, settings)
    client.open_tracking(settings.mlflow_tracking_uri)


def check_configuration(workspace: Workspace, settings: Settings) -> None:
    """Check a customer's params, and what they name, as `customer show` does and every run.

    Raises:
        UserError: no folder of videos, params that do not fit together, an exporter that is not
            installed.
        BudgetRefused: this machine's price is unknown.
    """
    check_source(workspace)
    for target in check_params(workspace):
        RUNTIMES[target.runtime].check()
    check_device(workspace)
    price_of(workspace.params, settings, "gate")


def check_source(workspace: Workspace) -> None:
    """Check that the customer has a folder of videos.

    Raises:
        UserError: it has none.
    """
    if not workspace.source.is_dir():
        raise UserError(
            f"customers.{workspace.customer}.source: no folder {workspace.source}"
            + ("; make setup fetches the demo videos" if workspace.customer == "demo" else "")
        )


def preview(settings: Settings, customer: str) -> str:
    """A sentence on what `turbo-vaed poc CUSTOMER` would do now and what that would cost. It runs
    nothing but stage `params`, which costs nothing.

    Raises: as `preflight` and `estimate`.
    """
    workspace = preflight(settings, customer)
    todo = to_do_now(workspace, settings)
    if todo is None:
        return "Nothing has changed since the last run: nothing would run."
    if not todo.stale:
        return f"No stage of {customer} would run; its last run would be registered and reported."
    what = f"{', '.join(todo.stages)} of {customer} would run"
    if todo.why:
        what += f", because {todo.why}"
    return f"{what}; {estimate(workspace, settings, todo, is_begun=False)}."


def admit(workspace: Workspace, settings: Settings, todo: ToDo) -> str:
    """Let a run begin: estimate it, reserve its budget, and record which student it may distil;
    returns a sentence about its cost.

    Raises: as `estimate`.
    """
    sentence = estimate(workspace, settings, todo)
    if "distill" in todo.stages and not todo.resumes:
        note_begun(workspace, todo.run)
    return sentence


def estimate(workspace: Workspace, settings: Settings, todo: ToDo, *, is_begun: bool = True) -> str:
    """Estimate what a run will cost, check that it fits its limits, and reserve what it will spend
    in any case until `release`; returns a sentence about it. A refused run reserves nothing.

    Args:
        is_begun: false for a preview, which reserves and writes nothing.

    Raises:
        BudgetRefused: a price is unknown, or the run does not fit what it may still spend. A run
            that resumes its training needs no estimate: it stops by itself.
        UserError: a node of the cluster does not reach what a stage would give its workers.
        Unreachable: the cluster on which a stage would run does not answer.
    """
    if set(RAY_STAGES) & set(todo.stages):
        check_reach(workspace, settings)
    run, offers = todo.run.run_id, partial(cheapest_elsewhere, workspace, settings)
    with Ledger.open(settings.ledger_url) as ledger:
        facts = gather_facts(workspace, settings, ledger, todo)
        limits, customer = limits_of(workspace.params), workspace.customer
        reservation = reservation_of(ledger, limits, run=run, customer=customer)
        limit = reservation.spending_limit()
        require_budget_left(limit, spent_usd=facts.spent_usd)
        found = estimate_run(facts)
        try:
            require_fit(found, facts, limit, offers)
        finally:
            if is_begun and not facts.resumes:
                save_estimate(workspace.work, found, facts)
        if is_begun:
            claimed = reservation.claim(
                facts.spent_usd + found.committed_usd, least_usd=facts.spent_usd + found.least_usd
            )
            if claimed.usd < limit.usd:  # another run has reserved some of it meanwhile
                limit = claimed
                require_budget_left(limit, spent_usd=facts.spent_usd)
                require_fit(found, facts, limit, offers)
    if facts.resumes:
        return f"run {run} resumes from its last checkpoint"
    left = f"{format_usd(limit.usd - facts.spent_usd)} left of {limit.by}"
    if found.cost is None:
        return f"no estimate: no worker was free for a timing run; {left}"
    return f"estimated at {found.cost}; {left}"


def gather_facts(workspace: Workspace, settings: Settings, ledger: Ledger, todo: ToDo) -> RunFacts:
    """Read what an estimate of a run rests on.

    Raises: as `estimate`.
    """
    from turbo_vaed.planning.flops import expected_timing  # it takes PyTorch

    params, past = workspace.params, past_runs(workspace, settings, ledger)
    return RunFacts(
        stages=todo.stages,
        resumes=todo.resumes,
        steps=params.distill.steps,
        prices=run_prices(params, settings, past.downstream),
        past=past,
        time_by_flops=partial(expected_timing, workspace, settings, todo.stages),
        reserve_seconds=params.budget.reserve_seconds,
        device=params.device.name,
        packages=len(params.export.targets),
        spent_usd=ledger.total(run=todo.run.run_id),
    )


def release(settings: Settings, run: str) -> None:
    """End the reservation of a run that is over, or has ended for now."""
    try:
        with Ledger.open(settings.ledger_url) as ledger:
            release_reservation(ledger, run)
    except TurboVaedError as error:
        log.warning("%s", error)
