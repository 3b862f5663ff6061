"""A customer that was trained here: 36 seconds a step, and what that was charged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests import configs
from tests.costs.listed import NOON
from tests.planning.customer import (
    charge,
    local,
)
from turbo_vaed.costs import Ledger
from turbo_vaed.planning import flops
from turbo_vaed.planning.history import pace_key
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    configs.copy_to(tmp_path)
    (tmp_path / "assets").symlink_to(REPOSITORY / "assets")
    (tmp_path / "infra").symlink_to(REPOSITORY / "infra")
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    (tmp_path / "dvc.yaml").touch()
    workspace = Workspace.load(tmp_path, "demo")
    workspace.folder("distill").mkdir(parents=True)
    trained = NOON.timestamp() + 20_130  # within the charges of demo-2
    rows = [{"step": i + 1, "at": trained + 36 * i} for i in range(101)]
    longer = dataclasses.replace(workspace.params.distill, steps=1000)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=longer)
    )
    key = pace_key(workspace.params.distill, local(workspace.root))
    history = {"steps": rows, "pace_key": key}
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    return workspace


@pytest.fixture
def settings(workspace: Workspace) -> Settings:
    return local(workspace.root)


@pytest.fixture
def ledger(settings: Settings) -> Any:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add_all(
            [
                charge("encode", "demo-1", 0, 9999),
                charge("encode", "demo-2", 20_000, 20_100),
                charge("distill", "demo-2", 20_100, 20_100 + 101 * 36 + 60),
                charge("gate", "demo-2", 30_000, 30_040),
                charge("distill", "demo-3", 40_000, 40_001),  # a later one, without a step
                charge("encode", "demo-2", 20_000, 20_001, unit="GB-month"),  # no stage's time
            ]
        )
        yield ledger


@pytest.fixture
def machine_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's speed, made up: it is measured in a process that imports PyTorch."""
    speed = flops._Workers(student=2e11, teacher=1e11, count=2)
    monkeypatch.setattr(flops, "_workers", lambda *_: speed)
