"""What a new version of this code, or of the configuration, would run again, and what it costs.

For all customers of a checkout, without a process of DVC and without writing anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from flows import runs
from flows.admission import gather_facts
from flows.customer_state import of_another_checkout
from flows.to_do import ToDo, has_begun, run_to_do
from turbo_vaed.config import load, pipeline
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs import Ledger
from turbo_vaed.costs.db.engine import connect
from turbo_vaed.costs.db.migrate import Schema, schema_of
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.errors import BudgetRefused, TurboVaedError, Unreachable
from turbo_vaed.planning.estimate import CostRange, estimate_run
from turbo_vaed.planning.upgrade import Change, changes, downstream, last_cost, recorded_stages
from turbo_vaed.runtime.digests import DigestCache
from turbo_vaed.settings import Settings
from turbo_vaed.stages.params import DIGESTS, section_texts
from turbo_vaed.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class CustomerPlan:
    """What the next run of a customer would do because of the upgrade."""

    customer: str
    again: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    """The stages that run again, in order, and why."""
    downstream: tuple[str, ...] = ()
    """Those that read what these make; they run where that is different then."""
    cost: CostRange | None = None
    """Of all of them; None where nothing runs, or nothing is known."""
    note: str = ""
    """What a reader should know: that it has not run yet, why nothing is known of its cost."""
    error: str = ""
    """Why its next run would be refused: params that this version does not take."""


@dataclass(frozen=True, kw_only=True)
class UpgradePlan:
    """Of a checkout."""

    customers: tuple[CustomerPlan, ...]
    ledger: Schema


def plan(settings: Settings, names: Sequence[str] = ()) -> UpgradePlan:
    """What would run again of these customers, or of all.

    Raises:
        UserError: files that cannot be read, an unknown customer.
        Unreachable: the ledger does not answer.
    """
    files = load.read(settings.root)
    template = pipeline.template(settings.root)
    cache = DigestCache(settings.root / DIGESTS, keeps=False)
    schema = schema_of(settings.ledger_url)
    with _read_only(settings, schema) as (ledger, open_runs):
        found = [
            _customer(settings, files, template, cache, ledger, open_runs, name)
            for name in names or sorted(map(str, files.customers))
        ]
    return UpgradePlan(customers=tuple(found), ledger=schema)


@contextmanager
def _read_only(
    settings: Settings, schema: Schema
) -> Iterator[tuple[Ledger | None, OpenRuns | None]]:
    """The ledger as it is, not brought to this version, and what runs have left in it; None where
    its tables are not there yet."""
    if schema.found is None:
        yield None, None
        return
    engine = connect(settings.ledger_url)
    try:
        yield Ledger(engine), None if schema.pending else OpenRuns(engine)
    finally:
        engine.dispose()


def _recorded(workspace: Workspace, open_runs: OpenRuns | None) -> Mapping[str, Any]:
    """DVC's record of the customer's last run, in whatever checkout that ran."""
    lock = workspace.dvc_lock
    found = of_another_checkout(workspace, open_runs) if open_runs else None
    if found is not None:
        text = found.files.get(lock.name, "")
        return recorded_stages(text, f"what {workspace.customer}'s last run left in the ledger")
    text = lock.read_text(encoding="utf-8", errors="replace") if lock.is_file() else ""
    return recorded_stages(text, str(lock))


def _customer(
    settings: Settings,
    files: load.ConfigFiles,
    template: Any,
    cache: DigestCache,
    ledger: Ledger | None,
    open_runs: OpenRuns | None,
    name: str,
) -> CustomerPlan:
    if name not in files.customers:
        load.resolve(files, name)  # says which there are
    try:
        params = load.resolve(files, name).params()
        workspace = Workspace(
            customer=name, params=params, root=settings.root, run_context=RunContext()
        )
        sections = section_texts(workspace, cache)
        recorded = _recorded(workspace, open_runs)
    except TurboVaedError as error:
        return CustomerPlan(customer=name, error=str(error))
    if not set(recorded) & set(STAGES):
        return CustomerPlan(customer=name, note="has not run yet")
    stages = pipeline.fill(template, name, params.source)["stages"]
    again = changes(recorded, stages, sections, settings.root, workspace.folder("params"))
    if not again:
        return CustomerPlan(customer=name)
    cost, note = _cost(workspace, settings, ledger, again)
    return CustomerPlan(
        customer=name,
        again=again,
        downstream=downstream(stages, again),
        cost=cost,
        note=note,
    )


def _cost(
    workspace: Workspace,
    settings: Settings,
    ledger: Ledger | None,
    again: Mapping[str, tuple[Change, ...]],
) -> tuple[CostRange | None, str]:
    """What the run would be estimated at, without timing a worker: where no pace was measured, what
    the stages cost last. And a remark on it."""
    if ledger is None:
        return None, "cost unknown: there is no ledger yet"
    run = run_to_do(workspace, list(again)) or runs.fresh(workspace.customer)
    todo = ToDo(run=run, stale=list(again))
    try:
        if "distill" in todo.stages and has_begun(workspace, run, ledger):
            return None, f"run {run.run_id} goes on from its checkpoint, within its own budget"
        facts = gather_facts(workspace, settings, ledger, todo)
        changed = (stage for stage, why in again.items() if any(one.of_params for one in why))
        past = replace(facts.past, changed_stages=frozenset(changed))
        cost = estimate_run(replace(facts, past=past, time_by_flops=lambda: None)).cost
        why = "no run of these params was timed here"
    except (BudgetRefused, Unreachable) as error:
        cost, why = None, str(error)
    if cost is not None:
        return cost, ""
    cost = last_cost(ledger.grouped(customer=workspace.customer), todo.stages)
    return cost, why if cost else f"cost unknown: {why}, and not every stage was charged before"
