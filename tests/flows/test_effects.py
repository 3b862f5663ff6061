"""What registering leaves in MLflow of a run whose stages have ended well."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from flows import effects, runs
from turbo_vaed.metering.live_metrics import LiveRun
from turbo_vaed.registry.client import experiment_id, find_or_create_run
from turbo_vaed.runtime.files import write_json

pytestmark = pytest.mark.slow


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
