"""One stage, run and metered: what `turbo-vaed stage NAME CUSTOMER` does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from turbo_vaed.cluster import autoscaler
from turbo_vaed.cluster.nodes import count_by_type, nodes_of, own_node, price_book
from turbo_vaed.cluster.scaling import wait_for_machines
from turbo_vaed.cluster.session import worker_session
from turbo_vaed.cluster.watch import Watch
from turbo_vaed.config import pipeline
from turbo_vaed.config.stages import IDLE_STAGE, RAY_STAGES, STAGES, UP_TO_DISTILL
from turbo_vaed.costs import (
    Charge,
    Ledger,
    Meter,
    Nodes,
    Rate,
    outbox,
    release_reservation,
    require_budget_left,
    reservation_of,
)
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.costs.run_context import RunContext, Usage
from turbo_vaed.costs.tags import resource_tags
from turbo_vaed.errors import TurboVaedError, UserError
from turbo_vaed.metering import idle_nodes
from turbo_vaed.metering.live_metrics import LiveRun
from turbo_vaed.planning import cluster_config
from turbo_vaed.planning.history import downstream
from turbo_vaed.planning.pricing import limits_of
from turbo_vaed.runtime import files
from turbo_vaed.settings import Settings, new_run_id
from turbo_vaed.workspace import Workspace

SLICE_SECONDS, CLUSTER_SLICE_SECONDS = 15.0, 5.0
"""Of a meter: how late it learns of machines that come and go."""
_log = logging.getLogger(__name__)
FIGURES = "figures.json"
"""Headline figures of a stage, in its output folder."""


def run_metered(settings: Settings, name: str, customer: str) -> dict[str, Any]:
    """Run a stage of a customer and charge the seconds of its nodes to the run; its figures.

    Raises:
        BudgetRefused: a price is unknown, or a month's budget is used up.
        Busy: another run holds the customer.
        UserError: no such stage or customer, invalid params; a copy of the checkout, made by DVC.
        TurboVaedError: whatever the stage ends in.
    """
    if "/.dvc/tmp/exps/" in f"{settings.root.as_posix()}/":
        raise UserError(
            "dvc exp run --temp and --queue copy the checkout without its ledger and its videos; "
            "run dvc exp run without them"
        )
    if name == "params":
        return _resolve_params(Workspace.load(settings.root, customer))
    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}; allowed: params, {', '.join(STAGES)}")
    run = settings.run_id or new_run_id(customer)
    workspace = Workspace.for_stage(settings.root, customer, name)
    with OpenRuns.open(settings.ledger_url) as open_runs:
        token = open_runs.require_held(customer, settings.token)
    with workspace.reading_sections(), Ledger.open(settings.ledger_url) as ledger:
        workspace = Workspace.for_stage(settings.root, customer, name)  # as they are from here on
        outbox.post(ledger, settings.outbox_folder)
        limits = limits_of(workspace.params)
        reservation = reservation_of(ledger, limits, run=run, customer=customer)
        if name in UP_TO_DISTILL:
            require_budget_left(reservation.spending_limit(), spent_usd=ledger.total(run=run))

        def charge(usage: Usage) -> None:
            outbox.add_or_store(
                ledger, usage_charge(usage, run, customer, name), settings.outbox_folder
            )

        with _nodes(workspace, settings, ledger, run, name) as nodes:
            live = LiveRun(settings.mlflow_tracking_uri, customer=customer, run_id=run, kind=name)
            meter = Meter(
                ledger,
                run=run,
                customer=customer,
                stage=name,
                nodes=nodes,
                interval_seconds=CLUSTER_SLICE_SECONDS
                if _is_on_a_cluster(settings, name)
                else SLICE_SECONDS,
                outbox=settings.outbox_folder,
            )
            run_context = RunContext(
                token=token,
                # In this order: a slice that is written in between counts twice, never not at all.
                spent_usd=lambda: meter.unwritten_usd() + ledger.total(run=run),
                reservation=reservation,
                downstream=lambda: downstream(ledger.grouped(customer=customer)),
                usd_per_hour=meter.usd_per_hour,
                mark_wasted=meter.mark_wasted,
                mark_useful_until=meter.mark_useful_until,
                log_metrics=live.log_metrics,
                log_picture=live.log_picture,
                tags=partial(resource_tags, run=run, customer=customer, stage=name),
                charge=charge,
            )
            try:
                # The stage's own meter last: idle time up to now is charged for this machine, too.
                with live, _metering_idle_nodes(workspace, settings, ledger, run, name), meter:
                    workspace = dataclasses.replace(workspace, run_context=run_context)
                    stage = importlib.import_module(f"turbo_vaed.stages.{name}")
                    figures: dict[str, Any] = stage.run(workspace)
            finally:
                if settings.run_id is None:  # a stage by hand is a run of its own, and over
                    release_reservation(ledger, run)
    text = json.dumps(figures, indent=1, default=str)
    files.write_text(workspace.folder(name) / FIGURES, text + "\n")  # before DVC hashes the folder
    print(f"{name}: {', '.join(f'{k} {_formatted(v)}' for k, v in figures.items())}", flush=True)
    return figures


def _resolve_params(workspace: Workspace) -> dict[str, Any]:
    """Stage `params`, which costs nothing.

    Raises:
        UserError: DVC is running a pipeline that is out of date, after an edit by hand.
    """
    if pipeline.write(workspace.root, workspace.customer, workspace.params.source):
        raise UserError(
            f"{pipeline.FOLDER}/{workspace.customer}/dvc.yaml was out of date and has been written "
            "again from dvc.yaml and params.yaml; run the same command again"
        )
    found: dict[str, Any] = importlib.import_module("turbo_vaed.stages.params").run(workspace)
    return found


def _is_on_a_cluster(settings: Settings, stage: str) -> bool:
    return stage in RAY_STAGES and settings.on_a_cluster


@contextmanager
def _nodes(
    workspace: Workspace, settings: Settings, ledger: Ledger, run: str, stage: str
) -> Iterator[Nodes]:
    """The nodes of a stage, for its meter. Ray is connected until the block ends; a cluster's nodes
    are charged for their idle time before the stage, and recorded."""
    held = nodes_of(workspace.params, settings, stage)
    if not _is_on_a_cluster(settings, stage):
        yield held
        return
    seen = workspace.work / idle_nodes.TRACKING_FILE
    with worker_session(settings):
        if (settings.root / autoscaler.CONFIG).is_file():
            _bring_machines(workspace, settings, run, stage)
        # The nodes that were idle meanwhile are charged for it.
        idle_nodes.charge_idle_nodes(
            ledger,
            held,
            seen,
            run=run,
            customer=workspace.customer,
            own_node=own_node(),
        )
        yield idle_nodes.tracked(held, seen, run=run)


def _bring_machines(workspace: Workspace, settings: Settings, run: str, stage: str) -> None:
    """Tell the autoscaler what machines cost now and which of them the run's budget allows, and
    wait for the first ones.

    Raises:
        Unreachable: EC2 has none.
    """
    try:
        # All params, not the stage's section: they decide what is paid, never a stage's output.
        whole = Workspace.load(settings.root, workspace.customer)
        book = price_book(whole.params, settings)
        config = cluster_config.plan(
            settings.root,
            whole.params.prices,
            settings.ray_address or "",
            fits_on_demand=cluster_config.fits_on_demand(whole, settings, book, run=run),
            up=count_by_type(),
            book=book,
        )
        cluster_config.write(settings.root, config)
    except TurboVaedError as error:
        _log.warning("machines are started as before: %s", error)
    least = workspace.params.distill.min_workers if stage == "distill" else 1
    say = partial(print, flush=True)
    wait_for_machines(settings.root / autoscaler.CONFIG, least, say)


@contextmanager
def _metering_idle_nodes(
    workspace: Workspace, settings: Settings, ledger: Ledger, run: str, stage: str
) -> Iterator[None]:
    """Meter the cluster's other nodes, which are idle while a stage runs on this machine alone.
    Where that is not possible, whoever comes next charges them: no stage fails because of it, nor
    because the cluster is gone."""
    seen = workspace.work / idle_nodes.TRACKING_FILE
    if not settings.on_a_cluster or stage in RAY_STAGES or not idle_nodes.is_tracked(seen, run):
        yield
        return
    customer = workspace.customer
    with ExitStack() as open_:
        try:
            watch = open_.enter_context(
                Watch(settings.ray_address or "", seconds=CLUSTER_SLICE_SECONDS)
            )
            own = watch.own_node
            priced = nodes_of(workspace.params, settings, "distill", watch.nodes)

            def held() -> Mapping[str, Rate]:
                return priced() if watch.nodes() else {}  # one price for all reads no nodes

            idle_nodes.charge_idle_nodes(
                ledger, held, seen, run=run, customer=customer, own_node=own
            )
            others = idle_nodes.without_node(idle_nodes.tracked(held, seen, run=run), own)
            meter = Meter(
                ledger,
                run=run,
                customer=customer,
                stage=IDLE_STAGE,
                nodes=others,
                interval_seconds=CLUSTER_SLICE_SECONDS,
                outbox=settings.outbox_folder,
            )
            open_.enter_context(meter)
        except Exception as error:  # whatever Ray says
            _log.warning("the cluster's idle nodes are charged after %s: %s", stage, error)
        yield


def _formatted(value: object) -> str:
    """A figure for a person; a digest by its first digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_formatted, value)) or "none"
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def usage_charge(usage: Usage, run: str, customer: str, stage: str) -> Charge:
    """A usage as a charge for the ledger."""
    return Charge(
        run=run,
        customer=customer,
        stage=stage,
        resource=usage.resource,
        market="on-demand",
        quantity=usage.quantity,
        unit=usage.unit,
        unit_price_usd=usage.usd_per_unit,
        amount_usd=quantise_usd(usage.quantity * usage.usd_per_unit),
        started_at=usage.began,
        ended_at=usage.ended,
        useful="wasted" if usage.is_wasted else "useful",
        price_source=usage.source,
    )
