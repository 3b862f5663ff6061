"""`turbo-vaed ec2 config` and `ec2 run` without a machine: for which run, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import admission, dvc, runs, to_do
from flows.launch import instance_selection, launch, launch_config
from flows.to_do import ToDo
from turbo_vaed.cli import app
from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import Fault
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.fixture
def made(
    workspace: Workspace, settings: Settings, book: PriceBook, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The stages that DVC was called for; none of them is stale."""
    made: list[str] = []

    select_instance = instance_selection.select_instance
    monkeypatch.setenv("TURBO_VAED_ROOT", str(settings.root))
    monkeypatch.setattr(dvc, "status", lambda *_: dvc.Status(changed=[], missing=[]))
    monkeypatch.setattr(dvc, "reproduce", lambda root, customer, stage, **_: made.append(stage))
    monkeypatch.setattr(admission, "preflight", lambda *_: workspace)
    monkeypatch.setattr(
        instance_selection,
        "select_instance",
        lambda *of, **given: select_instance(*of, **given, book=book),
    )
    monkeypatch.setattr(
        launch_config, "_check_places", lambda settings: None
    )  # a SQLite ledger is one
    return made


def test_a_run_that_a_months_limit_stopped_resumes_though_params_have_changed(
    workspace: Workspace, run: runs.Run, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a larger limit, say: the sections are written, which costs nothing."""
    monkeypatch.setattr(to_do, "run_with_more_budget", lambda *_: run)
    result = CliRunner().invoke(app, ["ec2", "config", "demo"])
    assert result.exit_code == 0, result.output
    assert made == [] and (workspace.work / "params" / "distill.yaml").is_file()
    assert run.run_id in (workspace.work / "ec2" / "planned.yaml").read_text(), "and no fresh one"


@pytest.mark.parametrize("is_up", [False, True])
def test_permission_to_distil_is_recorded_once_its_machine_is_up(
    workspace: Workspace, todo: ToDo, made: list[str], monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    """What the machine itself keeps of that is lost with it."""

    @contextmanager
    def started(config: Path) -> Iterator[None]:
        if not is_up:
            raise Fault("AWS has none of them")
        yield

    def run_there(*_: Any) -> None:
        raise Fault("the machine was lost")

    monkeypatch.setattr(launch, "started", started)
    monkeypatch.setattr(launch, "run_there", run_there)
    monkeypatch.setattr(to_do, "to_do", lambda *_: todo)
    result = CliRunner().invoke(app, ["ec2", "run", "demo"])
    assert isinstance(result.exception, Fault), result.output
    assert (to_do._student_key(workspace) in dict(to_do._allowed(workspace, todo.run))) == is_up
