"""What follows the stages: registration, and the report with the charges that it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from flows import effects, runs
from tests import configs
from turbo_vaed.costs import Ledger
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.shared_log import COPY
from turbo_vaed.errors import Unreachable
from turbo_vaed.metering.live_metrics import LiveRun
from turbo_vaed.registry.client import experiment_id, find_or_create_run
from turbo_vaed.report.context import Failure
from turbo_vaed.runtime.files import write_json
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.mark.parametrize("is_down", [False, True])
def test_checkpoints_that_another_checkout_wrote_are_charged_where_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    """The run trained there, and went on here with the gate. A storage that is down leaves the
    charge out, and the report is written."""
    configs.copy_to(tmp_path)
    workspace, shared = Workspace.load(tmp_path, "demo"), tmp_path / "shared"
    settings = replace(Settings.from_environment(tmp_path), checkpoints_url=str(shared))
    run = runs.fresh("demo")
    written = datetime.now(UTC) - timedelta(hours=1)
    run = replace(run, started=(written - timedelta(hours=1)).isoformat())
    event = {"event": "checkpoint", "step": 1, "name": "1.pt", "bytes": 10**9}
    log = json.dumps({**event, "at": written.timestamp()}) + "\n"
    Store(str(shared / "demo")).put(COPY, log.encode())
    if is_down:

        def fail(*_: object, **__: object) -> bytes:
            raise Unreachable("S3 does not answer")

        monkeypatch.setattr(Store, "get", fail)
    failure = Failure(stage="gate", error="broken")
    effects.report(workspace, settings, run, None, failure)
    with Ledger.open(settings.ledger_url) as ledger:
        charges = ledger.charges(run=run.run_id)
    assert [c.started_at for c in charges] == ([] if is_down else [written])
    assert workspace.report.is_file()


@pytest.mark.slow
def test_a_stage_that_did_not_wait_for_a_slow_mlflow_is_finished_at_registration(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under many runs at once the last message of a stage's curves came too late."""
    run, client = runs.fresh("acme"), MlflowClient(tracking_uri=store)
    stage = LiveRun(store, customer="acme", run_id=run.run_id, kind="distill")
    experiment = experiment_id(client, store, "acme")
    left = find_or_create_run(client, experiment, "distill", stage._tags)
    write_json(
        tmp_path / "evaluate/evaluation.json", {"teacher": {}, "student": {}, "retention": {}}
    )
    write_json(tmp_path / "distill/history.json", {"student_parameters": 1})
    write_json(tmp_path / "gate/verdict.json", {"git_revision": "8c1d", "data_sha256": "d" * 64})
    section = SimpleNamespace()
    params = SimpleNamespace(
        clip=section, encode=SimpleNamespace(teacher_weights="t"), distill=section, gate=section,
        use_case="education",
    )  # fmt: skip
    workspace = SimpleNamespace(
        customer="acme", folder=lambda name: tmp_path / name, params=params,
        dvc_lock=tmp_path / "dvc.lock",
    )  # fmt: skip
    settings = SimpleNamespace(
        ledger_url=f"sqlite:///{tmp_path}/ledger.db", mlflow_tracking_uri=store
    )
    registered = SimpleNamespace(name="turbo-vaed-acme", version=1, mlflow_run_id="0")
    monkeypatch.setattr(effects.promotion, "register", lambda **_: registered)
    effects.register(workspace, settings, run)
    assert client.get_run(left).info.status == "FINISHED"
