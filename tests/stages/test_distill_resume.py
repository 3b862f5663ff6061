"""What the parameters of the stage `distill` depend on, and what it resumes from when run again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests import configs
from tests.distill.checkpoints import make_checkpoint
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Store, step_of
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.student import Student
from turbo_vaed.errors import Unreachable
from turbo_vaed.models import load_decoder
from turbo_vaed.stages import distill
from turbo_vaed.stages import params as params_stage
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path, tiny_teacher: Path) -> Workspace:
    """The demo's, with a teacher; `education` asks for 22 dB and 0.95 of the teacher's."""
    configs.copy_to(tmp_path)
    shutil.copytree(tiny_teacher, tmp_path / "assets/teachers/tiny-ltx")
    return Workspace.load(tmp_path, "demo")


def sections(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    configs.override(configs.copy_to(workspace.root), **changes)
    params_stage.run(Workspace.load(workspace.root, "demo"))
    found = yaml.safe_load((workspace.work / "params" / "distill.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_distillation_depends_on_the_gates_limits_only_where_it_stops_by_them(
    workspace: Workspace,
) -> None:
    assert sections(workspace) == sections(workspace, thresholds={"min_psnr": 31.0})
    aims = {"distill": {"stop_psnr_margin_db": 0.5}}
    limits = {
        "min_psnr": 22.0, "min_psnr_retention": 0.95, "min_ssim": 0.6, "min_ms_ssim": 0.8,
        "min_worst_psnr": 16.0, "max_flicker": 3.0, "min_detail_retention": 0.7,
    }  # fmt: skip
    aimed = sections(workspace, **aims)
    assert (aimed["thresholds"], aimed["evaluate"]["worst_share"]) == (limits, 0.05)
    for name in limits:  # any of them, and no limit of the package
        moved = sections(workspace, **aims, thresholds={name: 0.5})
        assert moved["thresholds"] == limits | {name: 0.5}
    others = {"min_parity": 60, "min_fps": 30, "max_package_mb": 20, "max_latency_ratio": 0.5}
    assert aimed == sections(workspace, **aims, thresholds=others)
    moved = sections(workspace, **aims, evaluate={"worst_share": 0.1})
    assert moved["evaluate"]["worst_share"] == 0.1
    assert sections(workspace) == sections(workspace, evaluate={"worst_share": 0.1})


@dataclasses.dataclass
class Stage:
    """The stage with made-up workers: each start of them does two more steps."""

    workspace: Workspace
    end: str = "finished"
    """What stops them."""
    jobs: list[Job] = dataclasses.field(default_factory=list)
    started: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    """The job and the step that each start of workers resumed from."""

    def run(self, end: str = "finished", usd: str = "95", **distilled: Any) -> dict[str, object]:
        params = dataclasses.replace(
            self.workspace.params,
            budget=dataclasses.replace(self.workspace.params.budget, run_usd=Decimal(usd)),
            distill=dataclasses.replace(
                self.workspace.params.distill,
                student="auto",
                student_fraction=1.0,
                teacher_targets="recompute",
                **distilled,
            ),
        )
        self.end = end
        return distill.run(dataclasses.replace(self.workspace, params=params))

    def fit(self, job: Job, store: Store, *_: Any) -> None:
        found = store.newest(on_trouble=pytest.fail)
        step = found[1].step if found else 0
        self.jobs.append(job)
        self.started.append((job.name, step))
        best = Student(job.student, with_heads=False).decoder.state_dict()
        for n, stopped in ((step + 1, "running"), (step + 2, self.end)):
            history = [{"step": n, "step_seconds": 1.0, "at": float(n)}]
            state = make_checkpoint(n, best_step=n)
            store.write(dataclasses.replace(state, best=best, stopped=stopped, history=history))

    def kept(self, place: Path | None = None) -> dict[str, list[int]]:
        """The steps of the checkpoints of each job."""
        place = place or self.workspace.work / "checkpoints"
        found = {folder.name: Store(str(folder)).names() for folder in place.glob("distill-*")}
        return {job: [step_of(name) for name in names] for job, names in found.items() if names}


@pytest.fixture
def stage(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(workspace)
    for folder, name, facts in (
        ("clip", "clips.json", {}),
        ("encode", "latents.json", {"teacher_decoder_parameters": 10**6}),
    ):
        workspace.folder(folder).mkdir(parents=True)
        (workspace.folder(folder) / name).write_text(json.dumps(facts))
    monkeypatch.setattr(train, "_fit", stage.fit)
    monkeypatch.setattr(distill, "worker_session", lambda *_: nullcontext())
    return stage


def test_finished_training_is_not_paid_for_again_with_another_budget(
    stage: Stage,
) -> None:
    def written() -> tuple[str, dict[str, Any]]:
        folder = stage.workspace.folder("distill")
        decoder = load_decoder(folder / "student")
        return (folder / "history.json").read_text(), decoder.state_dict()

    figures = stage.run()
    ((job, _),) = stage.started
    assert stage.kept() == {job: [2]}, "no run resumes from the ones before"
    history, student = written()
    shutil.rmtree(stage.workspace.folder("distill"))  # as DVC does
    assert stage.run(usd="20") == figures
    assert stage.started == [(job, 0)], "no worker was started"
    again, same = written()
    assert again == history
    assert all(torch.equal(weight, same[name]) for name, weight in student.items())


def test_a_job_has_the_customers_params_data_and_budget(stage: Stage) -> None:
    stage.run(usd="10", stop_psnr_margin_db=None)
    (job,) = stage.jobs
    work, params = stage.workspace.work, stage.workspace.params
    assert (job.clips, job.latents) == (str(work / "clip"), str(work / "encode"))
    assert (job.plan.mode, job.targets) == ("recompute", None)
    assert job.plan.reconstruction == (params.distill.weight_teacher > 0)
    assert job.student.latent_channels == 8, "the teacher's"
    assert (job.teacher_family, job.params.steps) == ("ltx-video", params.distill.steps)
    assert job.quality_target is None
    assert job.costs.budget.run_usd <= 10 and job.costs.usd_per_hour > 0
    assert (work / "distill" / "history.json").is_file()
    log = [json.loads(line) for line in stage.workspace.progress_file.read_text().splitlines()]
    assert [(e["event"], e["job"], e["steps"]) for e in log] == [
        ("open", job.name, params.distill.steps)
    ]


def test_a_run_that_its_budget_stopped_resumes_with_a_larger_one(stage: Stage) -> None:
    assert stage.run("budget", usd="10")["stopped"] == "budget"
    ((job, _),) = stage.started
    assert stage.kept() == {job: [2, 1]}
    assert stage.run(usd="20")["stopped"] == "finished"
    assert stage.started == [(job, 0), (job, 2)]


@pytest.mark.parametrize("end", ["finished", "budget"])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_another_student_starts_over_and_replaces_the_last_ones_checkpoints(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, is_elsewhere: bool
) -> None:
    place = stage.workspace.work / "checkpoints"
    if is_elsewhere:
        monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", str(tmp_path / "shared"))
        place = tmp_path / "shared" / "demo"
        Store(f"{place}/distill-of-another-checkout").write(make_checkpoint(7))
    stage.run(end)
    stage.run(seed=5)
    (_, first), (job, second) = stage.started
    assert (first, second) == (0, 0)
    known = stage.kept(place)
    assert known.pop("distill-of-another-checkout", [7]) == [7]
    assert known == {job: [2]}


@pytest.mark.parametrize("end", ["finished", "budget"])
def test_another_students_checkpoints_are_replaced_from_another_checkout_too(
    stage: Stage,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(tmp_path, other, dirs_exist_ok=True)
    shared = tmp_path / "shared"
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", str(shared))
    stage.run(end)
    stage.workspace = dataclasses.replace(stage.workspace, root=other)
    stage.run(seed=5)
    (_, (job, _)) = stage.started
    assert stage.kept(shared / "demo") == {job: [2]}


def test_checkpoints_that_cannot_be_removed_do_not_fail_the_stage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Unreachable("S3 is gone")

    monkeypatch.setattr(Store, "clear", fail)
    assert stage.run()["stopped"] == "finished"
    assert "S3 is gone" in capsys.readouterr().out
