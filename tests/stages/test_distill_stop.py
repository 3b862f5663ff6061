"""What the stage `distill` takes for good enough, what its parameters depend on, and what it goes
on from when it is run again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests import configs
from tests.distill.checkpoints import make_checkpoint
from turbo_vaed.cluster import session
from turbo_vaed.costs import Budget, Spending
from turbo_vaed.distill import train
from turbo_vaed.distill import validation as module
from turbo_vaed.distill.checkpoints import Store, step_of
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.student import Student
from turbo_vaed.distill.teacher_targets import TeacherTargetsPlan
from turbo_vaed.distill.validation import TeacherQuality
from turbo_vaed.errors import Unreachable
from turbo_vaed.gate.evidence import LEAST_FLICKER, _quality
from turbo_vaed.gate.output_quality import OutputQuality
from turbo_vaed.models import PRESETS, load_decoder
from turbo_vaed.settings import Settings
from turbo_vaed.stages import distill
from turbo_vaed.stages import params as params_stage
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path, tiny_teacher: Path) -> Workspace:
    """The demo's, with a teacher; `education` asks for 22 dB and 0.95 of the teacher's."""
    configs.copy_to(tmp_path)
    shutil.copytree(tiny_teacher, tmp_path / "assets/teachers/tiny-ltx")
    return Workspace.load(tmp_path, "demo")


def target(workspace: Workspace, margin: float | None, usd: str = "1") -> Any:
    changed = dataclasses.replace(workspace.params.distill, stop_psnr_margin_db=margin)
    workspace = dataclasses.replace(
        workspace, params=dataclasses.replace(workspace.params, distill=changed)
    )
    spending = Spending(
        budget=Budget(run_usd=Decimal(usd), warn_share=Decimal(1), reserve_usd=Decimal("0.5")),
        usd_per_hour=Decimal(1),
        spent_usd=lambda: Decimal(0),
    )
    settings = Settings.from_environment(workspace.root)
    return distill._target(workspace, PRESETS["tiny-ltx"], settings, spending, lambda *_: None)


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> list[TeacherQuality]:
    """Its quality on the validation clips, to be replaced."""
    known = [TeacherQuality(psnr=30.0, detail=0.8, flicker=0.002)]

    def measure(wanted: Any, *, afford: Any, **_: Any) -> TeacherQuality:
        afford(0.0)
        return known[0]

    monkeypatch.setattr(module, "teacher_quality", measure)
    return known


def test_what_the_gate_asks_for_and_the_margin(
    workspace: Workspace, teacher: list[TeacherQuality], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `education`, and of the teacher's own what is relative to it."""
    found = target(workspace, 0.5)
    assert found.psnr == pytest.approx(0.95 * 30 + 0.5)
    assert found.worst_share == workspace.params.evaluate.worst_share == 0.05
    assert found.limits == pytest.approx(
        {
            "ssim": 0.60,
            "ms_ssim": 0.80,
            "worst_psnr": 16.0 + 0.5,
            "detail": 0.70 * 0.8,
            "flicker": 3.0 * 0.002,
        }
    )
    assert found.rationale == (
        "29.00 dB: 28.50 dB that the gate asks for (0.95 of the teacher's 30.00 dB on these "
        "clips), and a margin of 0.5 dB"
    )
    said = f"{found.rationale}; "
    said += "with ssim 0.6, ms_ssim 0.8, worst_psnr 16.5, detail 0.56, flicker 0.006"
    assert said in capsys.readouterr().out
    teacher[0] = dataclasses.replace(teacher[0], psnr=20.0)
    found = target(workspace, 0.0)
    assert found.limits["worst_psnr"] == 16.0
    assert found.psnr == 22.0
    assert (
        "22.00 dB that the gate asks for (more than 0.95 of the teacher's 20.00 dB"
        in found.rationale
    )


def test_without_a_margin_the_teacher_is_not_asked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "teacher_quality")
    assert target(workspace, None) is None


def test_a_teacher_that_hardly_flickers_or_clips_that_cannot(
    workspace: Workspace, teacher: list[TeacherQuality]
) -> None:
    teacher[0] = dataclasses.replace(teacher[0], flicker=LEAST_FLICKER / 10)
    assert target(workspace, 0.5).limits["flicker"] == pytest.approx(3.0 * LEAST_FLICKER)
    teacher[0] = dataclasses.replace(teacher[0], flicker=None)
    assert "flicker" not in target(workspace, 0.5).limits


@pytest.mark.parametrize("name", ["detail", "flicker"])
def test_what_is_asked_of_the_teachers_share_is_what_the_gate_asks(
    workspace: Workspace, teacher: list[TeacherQuality], name: str
) -> None:
    """A student of just the limit has just the gate's ratio, of clips whose own ratios differ."""
    of_teacher, pattern = np.array([0.002, 0.010, 0.006]), np.array([1.5, 0.3, 1.2])
    teacher[0] = dataclasses.replace(teacher[0], **{name: float(of_teacher.mean())})
    of_student = pattern * target(workspace, 0.5).limits[name] / pattern.mean()
    others = dict.fromkeys(("psnr", "ssim", "ms_ssim", "detail", "flicker"), 0.5)
    rows = [{"path": f"{i}.mp4", "teacher": {**others, name: value}}
            for i, value in enumerate(of_teacher)]  # fmt: skip
    clips = tuple({**others, name: float(value)} for value in of_student)
    quality: dict[str, dict[str, float]] = {}  # of the frames: not None
    shown = OutputQuality(quality=quality, clips=clips, parity_psnr_db=None)
    figures, _ = _quality(shown, {"clips": rows, "worst_share": 0.05}, 0.95)
    thresholds = workspace.params.thresholds
    checks = {
        "detail": ("detail_retention", thresholds.min_detail_retention),
        "flicker": ("flicker_ratio", thresholds.max_flicker),
    }
    check, asked = checks[name]
    assert figures[check] == pytest.approx(asked)


def test_a_target_that_cannot_be_paid_stops_nothing(
    workspace: Workspace, teacher: list[TeacherQuality], capsys: pytest.CaptureFixture[str]
) -> None:
    assert target(workspace, 0.5, usd="0.1") is None
    assert "no quality is enough to stop for: the teacher on validation" in capsys.readouterr().out


def sections(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    document = configs.read()
    document["customers"]["demo"] |= changes
    configs.write(workspace.root, document)
    params_stage.run(workspace)
    found = yaml.safe_load((workspace.work / "params" / "distill.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_distillation_depends_on_the_gate_only_where_it_aims_at_it(workspace: Workspace) -> None:
    assert sections(workspace) == sections(workspace, thresholds={"min_psnr": 31.0})
    aims = {"distill": {"stop_psnr_margin_db": 0.5}}
    limits = {
        "min_psnr": 22.0, "min_psnr_retention": 0.95, "min_ssim": 0.6, "min_ms_ssim": 0.8,
        "min_worst_psnr": 16.0, "max_flicker": 3.0, "min_detail_retention": 0.7,
    }  # fmt: skip
    aimed = sections(workspace, **aims)
    assert (aimed["thresholds"], aimed["worst_share"]) == (limits, 0.05)
    for name in limits:  # any of them, and nothing that is asked of the package
        moved = sections(workspace, **aims, thresholds={name: 0.5})
        assert moved["thresholds"] == limits | {name: 0.5}
    others = {"min_parity": 60, "min_fps": 30, "max_package_mb": 20, "max_latency_ratio": 0.5}
    assert aimed == sections(workspace, **aims, thresholds=others)
    assert sections(workspace, **aims, evaluate={"worst_share": 0.1})["worst_share"] == 0.1
    assert sections(workspace) == sections(workspace, evaluate={"worst_share": 0.1})


@dataclasses.dataclass
class Stage:
    """The stage, its workers made up: each start of them does two steps more."""

    workspace: Workspace
    end: str = "finished"
    """What stops them."""
    began: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    """The job and the step that each start of workers went on from."""

    def run(self, end: str = "finished", usd: str = "95", **distilled: Any) -> dict[str, object]:
        params = dataclasses.replace(
            self.workspace.params,
            budget=dataclasses.replace(self.workspace.params.budget, run_usd=Decimal(usd)),
            distill=dataclasses.replace(self.workspace.params.distill, **distilled),
        )
        self.end = end
        return distill.run(dataclasses.replace(self.workspace, params=params))

    def fit(self, job: Job, store: Store, *_: Any) -> None:
        found = store.newest(on_trouble=pytest.fail)
        step = found[1].step if found else 0
        self.began.append((job.name, step))
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
    plan = TeacherTargetsPlan(blocks=(), reconstruction=False, mode="none", reason="made up")
    monkeypatch.setattr(distill, "_student", lambda _: PRESETS["tiny-ltx"])
    monkeypatch.setattr(distill, "_targets", lambda *_: plan)
    monkeypatch.setattr(train, "_fit", stage.fit)
    monkeypatch.setattr(session, "ray_session", lambda *_: nullcontext())
    return stage


def test_a_training_that_is_finished_is_not_paid_for_again_with_another_budget(
    stage: Stage,
) -> None:
    def written() -> tuple[str, dict[str, Any]]:
        folder = stage.workspace.folder("distill")
        decoder = load_decoder(folder / "student")
        return (folder / "history.json").read_text(), decoder.state_dict()

    figures = stage.run()
    ((job, _),) = stage.began
    assert stage.kept() == {job: [2]}, "nothing goes on from the ones before"
    history, student = written()
    shutil.rmtree(stage.workspace.folder("distill"))  # as DVC does
    assert stage.run(usd="20") == figures
    assert stage.began == [(job, 0)], "no worker was started"
    again, same = written()
    assert again == history
    assert all(torch.equal(weight, same[name]) for name, weight in student.items())


def test_what_its_budget_stopped_goes_on_with_a_larger_one(stage: Stage) -> None:
    assert stage.run("budget", usd="10")["stopped"] == "budget"
    ((job, _),) = stage.began
    assert stage.kept() == {job: [2, 1]}
    assert stage.run(usd="20")["stopped"] == "finished"
    assert stage.began == [(job, 0), (job, 2)]


@pytest.mark.parametrize("end", ["finished", "budget"])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_another_student_begins_anew_and_takes_the_place_of_the_last(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, is_elsewhere: bool
) -> None:
    place = stage.workspace.work / "checkpoints"
    if is_elsewhere:
        monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", str(tmp_path / "shared"))
        place = tmp_path / "shared" / "demo"
        Store(f"{place}/distill-of-another-checkout").write(make_checkpoint(7))
    stage.run(end)
    stage.run(seed=5)
    (_, first), (job, second) = stage.began
    assert (first, second) == (0, 0)
    known = stage.kept(place)
    assert known.pop("distill-of-another-checkout", [7]) == [7]
    assert known == {job: [2]}


def test_checkpoints_that_cannot_be_removed_undo_no_stage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Unreachable("S3 does not answer")

    monkeypatch.setattr(Store, "clear", fail)
    assert stage.run()["stopped"] == "finished"
    assert "not needed any more stay: S3 does not answer" in capsys.readouterr().out
