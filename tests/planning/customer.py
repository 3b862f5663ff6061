"""What a customer's last run took, made up; and what is computed from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from flows import admission, runs
from flows.to_do import ToDo
from tests.costs.listed import NOON, Listed
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs import Charge, Ledger, PriceBook, SpendingLimit, per_second
from turbo_vaed.costs.money import quantise_usd
from turbo_vaed.planning.estimate import (
    CostRange,
    estimate_run,
    require_fit,
    save_estimate,
)
from turbo_vaed.planning.history import Pace, past_runs
from turbo_vaed.planning.quote import cheapest_elsewhere
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


def local(root: Path) -> Settings:
    return dataclasses.replace(Settings.from_environment(root), ray_address=None)


def book(tmp_path: Path, local: str | None = "0.08") -> PriceBook:
    ec2 = Listed(folder=tmp_path, max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=None if local is None else Decimal(local), ec2=ec2)


def estimated(
    workspace: Workspace,
    settings: Settings,
    ledger: Ledger,
    *,
    stages: Sequence[str] = STAGES,
    may_spend_usd: Decimal,
    spent_usd: Decimal = Decimal(0),
) -> CostRange:
    """The cost of a run of `stages`, as a flow admits it with a budget of `may_spend_usd`."""
    todo = ToDo(run=runs.fresh("demo"), stale=[stages[0]])
    facts = admission.gather_facts(workspace, settings, ledger, todo)
    facts = dataclasses.replace(facts, stages=tuple(stages), spent_usd=spent_usd)
    found = estimate_run(facts)
    save_estimate(workspace.work, found, facts)
    own = f"budget.run_usd of ${may_spend_usd}"
    limit = SpendingLimit(usd=may_spend_usd, by=own, is_own_budget=True)
    offers = partial(cheapest_elsewhere, workspace, settings, book=book(workspace.root))
    require_fit(found, facts, limit, offers)
    assert found.cost is not None
    return found.cost


def measured_pace(workspace: Workspace, settings: Settings) -> Pace | None:
    with Ledger.open(settings.ledger_url) as ledger:
        return past_runs(workspace, settings, ledger).pace


def progress(workspace: Workspace, *, losses: int, hours: float) -> None:
    machine = {"device": "cpu", "precision": "bf16", "compiled": False, "checkpoint": None}
    first = {"event": "start", "at": 1.0, "world": 1, "resumed_from": None, **machine}
    events: list[dict[str, Any]] = [
        {"event": "open", "at": 0.0, "job": "a", "steps": 9, "usd_per_hour": "0.1"},
        first,
        {"event": "step", "at": 2.0, "step": 1, "spent_usd": "0"},
        *({**first, "at": 10.0 * (i + 1), "resumed_from": 1} for i in range(losses)),
        {"event": "step", "at": 3600.0 * hours, "step": 2, "spent_usd": "0"},
    ]
    workspace.progress_file.parent.mkdir(parents=True)
    workspace.progress_file.write_text("".join(json.dumps(event) + "\n" for event in events))


def with_distill(workspace: Workspace, **changed: Any) -> Workspace:
    params = dataclasses.replace(workspace.params.distill, **changed)
    return dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=params)
    )


def charge(stage: str, run: str, begin: float, end: float, unit: str = "node-second") -> Charge:
    """At 0.08 USD an hour."""
    seconds, price = Decimal(str(end - begin)), per_second(Decimal("0.08"))
    return Charge(
        run=run,
        customer="demo",
        stage=stage,
        resource="node",
        market="local",
        quantity=seconds,
        unit=unit,
        unit_price_usd=price,
        amount_usd=quantise_usd(seconds * price),
        started_at=NOON + timedelta(seconds=begin),
        ended_at=NOON + timedelta(seconds=end),
        useful="useful",
        price_source="a test",
    )
