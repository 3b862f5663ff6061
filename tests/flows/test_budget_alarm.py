"""Prefect learns once that the run of a deployment has spent the warning share of its budget."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import budget_alarm
from tests import configs
from tests.costs.charges import charge
from turbo_vaed.costs import Ledger
from turbo_vaed.errors import Unreachable
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

URL = "http://127.0.0.1:9/api"
"""Of a server, which is never called: events are recorded."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("TURBO_VAED_LEDGER_URL", raising=False)
    return Settings.from_environment(configs.copy_to(tmp_path))


@pytest.fixture
def workspace(settings: Settings) -> Workspace:
    """With a budget of 100 USD, of which 80 % are the warning share."""
    found = Workspace.load(settings.root, "demo")
    budget = dataclasses.replace(found.params.budget, run_usd=Decimal(100), warn_share=0.8)
    return dataclasses.replace(found, params=dataclasses.replace(found.params, budget=budget))


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The events of the run `a-run` of the deployment `nightly`."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(budget_alarm, "deployment", SimpleNamespace(id="nightly"))
    monkeypatch.setattr(budget_alarm, "flow_run", SimpleNamespace(id="a-run"))
    monkeypatch.setattr(budget_alarm, "emit", lambda *given: found.append(given))
    return found


def spend(settings: Settings, usd: str) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(quantity=Decimal(1), unit_price_usd=Decimal(usd)))


def test_a_warning_comes_with_the_share_and_not_before(
    settings: Settings, workspace: Workspace
) -> None:
    spend(settings, "79.99")
    assert budget_alarm.warning(workspace, settings, "demo-1") == ""
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(20, quantity=Decimal(1), unit_price_usd=Decimal("0.01")))
    assert "80" in budget_alarm.warning(workspace, settings, "demo-1")
    assert budget_alarm.warning(workspace, settings, "demo-2") == "", "another run"


def test_a_run_is_warned_of_once(
    settings: Settings,
    workspace: Workspace,
    emitted: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget_alarm, "LOOK_SECONDS", 0.001)
    spend(settings, "90")
    with (
        temporary_settings({PREFECT_API_URL: URL}),
        budget_alarm.watched(workspace, settings, "demo-1"),
    ):
        pass
    (event,) = emitted
    assert event[:2] == ("a-run", "nightly")


@pytest.mark.parametrize("deployment", ["", "nightly"])
def test_the_last_look_is_at_the_end_and_only_of_a_deployments_run(
    settings: Settings,
    workspace: Workspace,
    emitted: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    deployment: str,
) -> None:
    monkeypatch.setattr(budget_alarm, "deployment", SimpleNamespace(id=deployment))
    with (
        temporary_settings({PREFECT_API_URL: URL}),
        budget_alarm.watched(workspace, settings, "demo-1"),
    ):
        spend(settings, "90")
    assert len(emitted) == (1 if deployment else 0)


def test_a_ledger_that_does_not_answer_ends_no_run(
    settings: Settings,
    workspace: Workspace,
    emitted: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> str:
        raise Unreachable("gone")

    monkeypatch.setattr(budget_alarm, "warning", fail)
    with (
        temporary_settings({PREFECT_API_URL: URL}),
        budget_alarm.watched(workspace, settings, "demo-1"),
    ):
        pass
    assert not emitted
