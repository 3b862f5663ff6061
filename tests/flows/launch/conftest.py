"""A customer that was trained here, and prices without AWS."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from flows import runs
from flows.to_do import ToDo
from tests import configs
from tests.costs.listed import Listed
from tests.flows.launch.places import REPOSITORY
from turbo_vaed.config.stages import STAGES
from turbo_vaed.costs import PriceBook
from turbo_vaed.planning.history import pace_key
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    listed = Listed(folder=tmp_path / "prices", max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=Decimal("0.08"), ec2=listed)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", "s3://checkpoints/here")
    root = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "assets/teachers/tiny-ltx", root / "assets/teachers/tiny-ltx")
    configs.copy_to(root)
    for name in ("dvc.yaml", "infra/ray/machine.yaml", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "data" / "demo").mkdir(parents=True)
    (root / "data" / "demo" / "a.mp4").touch()
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return Settings.from_environment(root)


@pytest.fixture
def workspace(settings: Settings) -> Workspace:
    """Trained here before: 36 seconds a step, a thousand steps to go."""
    workspace = Workspace.load(settings.root, "demo")
    longer = dataclasses.replace(workspace.params.distill, steps=1000)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=longer)
    )
    key = pace_key(longer, settings)
    rows = [{"step": i + 1, "at": 36.0 * i} for i in range(101)]
    workspace.folder("distill").mkdir(parents=True)
    history = {"steps": rows, "pace_key": key}
    (workspace.folder("distill") / "history.json").write_text(json.dumps(history))
    return workspace


@pytest.fixture
def run(workspace: Workspace) -> runs.Run:
    return runs.write(workspace.work, runs.fresh(workspace.customer))


@pytest.fixture
def todo(run: runs.Run) -> ToDo:
    """Everything, from the first stage on."""
    return ToDo(run=run, stale=list(STAGES))
