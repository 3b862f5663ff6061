"""A training job's costs, as they are reported to its workers."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import configs
from turbo_vaed.cluster import nodes as cluster_nodes
from turbo_vaed.costs import RunReservation, SpendingLimit
from turbo_vaed.costs.reservation import FRESH_SECONDS
from turbo_vaed.costs.run_context import DownstreamCost, RunContext
from turbo_vaed.errors import BudgetRefused
from turbo_vaed.planning import pricing
from turbo_vaed.planning.pricing import spending_of
from turbo_vaed.planning.training_job import run_costs, shared_limit_usd
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.load(configs.copy_to(tmp_path), "demo")


@pytest.fixture
def settings(workspace: Workspace) -> Settings:
    return dataclasses.replace(Settings.from_environment(workspace.root), ray_address=None)


def recorder(*, horizon_seconds: float) -> Any:
    run = SimpleNamespace(checkpoint_every_seconds=60.0)
    return SimpleNamespace(run=run, horizon_seconds=horizon_seconds)


def test_device_costs_are_reserved_from_the_first_step_to_the_last(
    workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start in the budget, and in all costs that are reported to the workers later."""
    monkeypatch.setattr(pricing, "devices_usd", lambda params: Decimal(5))
    reserved: list[Decimal] = []
    left = [Decimal(20)]
    reservation = RunReservation(
        read_limit=lambda: SpendingLimit(usd=left[0], by="a month's", is_own_budget=False),
        write=reserved.append,
        clock=itertools.count(0, FRESH_SECONDS).__next__,
    )
    workspace = dataclasses.replace(
        workspace, run_context=RunContext(spent_usd=lambda: Decimal(1), reservation=reservation)
    )
    spending = spending_of(workspace, settings, "distill")
    assert spending.budget.run_usd == 15
    needed = 1 + spending.budget.reserve_usd + 5
    spending.require(3600, "an hour")
    costs = run_costs(workspace, settings, spending, recorder(horizon_seconds=1800.0))
    assert costs is not None and costs().budget.run_usd == 15
    hour = spending.usd_per_hour
    assert reserved == pytest.approx([needed, needed + hour, needed + hour / 2]), (
        "reserved in the month's budget"
    )
    assert shared_limit_usd(workspace) == "20"
    left[0] = Decimal(6)  # others have used it up
    assert 0 < costs().budget.run_usd <= 1
    assert reserved[-1] == needed, "what must follow is spent in any case"
    assert shared_limit_usd(workspace) == "6"
    with pytest.raises(BudgetRefused, match=r"\$1\.00 .*a month's"):
        spending.require(1, "what fitted when the stage began")
    assert reserved[-1] == needed, "a refusal reserves nothing"


def test_the_reserve_grows_with_a_cluster_that_is_idle_during_the_last_stages(
    workspace: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of two nodes at 1 USD an hour when training starts, of eight when it ends."""
    nodes = ["a", "b"]
    monkeypatch.setattr(cluster_nodes, "ray_session", lambda address: nullcontext())
    monkeypatch.setattr(cluster_nodes, "most_usd_of_nodes", lambda *_: Decimal(len(nodes)))
    after = DownstreamCost(seconds=3000, usd=Decimal("0.5"))  # and a fifth longer
    run_context = RunContext(spent_usd=lambda: Decimal(1), downstream=lambda: after)
    workspace = dataclasses.replace(workspace, run_context=run_context)
    there = dataclasses.replace(settings, ray_address="10.0.0.1:6379")
    spending = spending_of(workspace, there, "distill")
    at_start = spending.budget.reserve_usd
    assert float(at_start) == pytest.approx(2 + 0.5)
    costs = run_costs(workspace, there, spending, recorder(horizon_seconds=60.0))
    assert costs is not None and costs().budget.reserve_usd == at_start
    nodes += ["c", "d", "e", "f", "g", "h"]
    assert float(costs().budget.reserve_usd) == pytest.approx(8 + 0.5)
