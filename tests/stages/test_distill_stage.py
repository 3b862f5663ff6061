"""The stage `distill` as it is, its workers in this process instead of Ray's: a real student of a
real teacher's latents, and the ends that a run comes to by itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import encoded
from tests.drills.stage import fit_here
from turbo_vaed.costs import Ledger
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.events import read_events
from turbo_vaed.distill.shared_log import COPY
from turbo_vaed.distill.validation import TeacherQuality
from turbo_vaed.gate import early_stop
from turbo_vaed.metering.storage_charges import charge_storage
from turbo_vaed.models import load_decoder
from turbo_vaed.settings import Settings
from turbo_vaed.stages import distill
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

STEPS = encoded.STEPS


@pytest.fixture
def workspace(tmp_path: Path, tiny_teacher: Path) -> Workspace:
    """`tests.encoded.customer`."""
    return encoded.customer(tmp_path, tiny_teacher)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_fit", fit_here(train.train_worker))
    monkeypatch.setattr(distill, "worker_session", lambda *_: nullcontext())


def run(workspace: Workspace, usd: str = "95", **changes: Any) -> dict[str, Any]:
    """The stage with changed params of `distill`; its history."""
    params = dataclasses.replace(
        workspace.params,
        budget=dataclasses.replace(workspace.params.budget, run_usd=Decimal(usd)),
        distill=dataclasses.replace(workspace.params.distill, **changes),
    )
    figures = distill.run(dataclasses.replace(workspace, params=params))
    history = json.loads((workspace.folder("distill") / "history.json").read_text())
    assert figures["stopped"] == history["stopped"]
    assert isinstance(history, dict)
    return history


def weights(workspace: Workspace) -> dict[str, torch.Tensor]:
    return load_decoder(workspace.folder("distill") / "student").state_dict()


def starts(workspace: Workspace) -> list[int | None]:
    """The step that each start of workers resumed from."""
    log = read_events(workspace.progress_file)
    return [event["resumed_from"] for event in log if event["event"] == "start"]


def test_distillation_runs_to_its_last_step(workspace: Workspace) -> None:
    history = run(workspace)
    assert (history["stopped"], history["steps_done"]) == ("finished", STEPS)
    assert [row["step"] for row in history["steps"]] == [*range(1, STEPS + 1)]
    validated = [row["val_psnr"] for row in history["steps"] if "val_psnr" in row]
    assert validated == sorted(validated), "it learns"
    assert history["best_val_psnr"] == validated[-1]
    (folder,) = (workspace.work / "checkpoints").glob("distill-*")
    _, state = Store(str(folder)).newest(pytest.fail) or pytest.fail("no checkpoint")
    written = weights(workspace)
    assert all(torch.equal(weight, written[name]) for name, weight in state.best.items())


def test_a_run_stopped_by_its_budget_leaves_a_student_and_resumes_with_a_larger_one(
    workspace: Workspace,
) -> None:
    history = run(workspace, usd="0.000001")
    assert (history["stopped"], history["steps_done"]) == ("budget", 0)
    started = weights(workspace)
    history = run(workspace)
    assert (history["stopped"], history["steps_done"]) == ("finished", STEPS)
    assert starts(workspace) == [None, 0]
    assert any(not torch.equal(w, started[name]) for name, w in weights(workspace).items())


def test_a_run_that_was_stopped_goes_on_in_another_checkout_with_all_that_came_before(
    workspace: Workspace,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps before, what the stop wasted, and since when checkpoints have been stored."""

    def stopped(job: Any, store: Store, storage: str, on_event: Any, *rest: Any) -> None:
        def listen(event: dict[str, Any]) -> None:
            on_event(event)
            if event["event"] == "step" and event["step"] == 5:
                give_up = time.monotonic() + 30
                saved = b'{"event": "checkpoint", "step": 4'
                while not (copy.is_file() and saved in copy.read_bytes()):
                    assert time.monotonic() < give_up, "a checkpoint is not in the copy"
                    time.sleep(0.01)
                raise KeyboardInterrupt

        fit(job, store, storage, listen, *rest)

    other = tmp_path_factory.mktemp("other")
    shutil.copytree(tmp_path, other, dirs_exist_ok=True)
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", str(tmp_path / "shared"))
    copy = tmp_path / "shared/demo" / COPY
    fit, began = train._fit, datetime.now(UTC)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train, "_fit", stopped)
        run(workspace)
    before = [*read_events(workspace.progress_file)]

    resumed = dataclasses.replace(workspace, root=other)
    history = run(resumed)
    assert (history["stopped"], history["steps_done"]) == ("finished", STEPS)
    log = [*read_events(resumed.progress_file)]
    assert log[: len(before)] == before
    assert starts(resumed) == [None, 4]
    assert [(r["step"], r["lost_steps"]) for r in history["restarts"]] == [(5, 1)]
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        settings, ended = Settings.from_environment(other), datetime.now(UTC)
        charge_storage(resumed, ledger, settings, run="r", began=began, ended=ended)
        (stored,) = [c for c in ledger.charges(run="r") if c.resource == "disk (checkpoints)"]
    first = next(event for event in before if event["event"] == "checkpoint")
    assert stored.started_at == datetime.fromtimestamp(first["at"], UTC)


def test_a_good_enough_run_stops_and_without_its_limit_ends_like_an_unlimited_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's quality is made up; all else is as a customer has it."""
    history = run(workspace)
    first = next(row for row in history["steps"] if row["step"] == 2)
    whole = weights(workspace)
    for folder in (workspace.folder("distill"), workspace.work / "checkpoints"):
        shutil.rmtree(folder)

    teacher = TeacherQuality(psnr=30.0, detail=0.0, flicker=0.0)
    monkeypatch.setattr(early_stop, "teacher_quality", lambda *_, **__: teacher)
    margin = first["val_psnr"] - 1.0
    history = run(workspace, stop_psnr_margin_db=margin)
    assert (history["stopped"], history["steps_done"]) == ("good enough", 2)
    assert history["target_psnr"] == pytest.approx(first["val_psnr"])
    assert f"{first['val_psnr']:.2f} dB" in history["reason"]
    assert run(workspace, stop_psnr_margin_db=margin)["stopped"] == "good enough"
    assert starts(workspace) == [None], "good enough by the same limits: nothing is trained"

    history = run(workspace, stop_psnr_margin_db=None)
    assert (history["stopped"], history["steps_done"]) == ("finished", STEPS)
    assert starts(workspace) == [None, 2]
    assert all(torch.equal(weight, whole[name]) for name, weight in weights(workspace).items())
