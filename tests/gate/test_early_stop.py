"""The quality at which distillation stops early is what the gate requires, and a margin."""

from __future__ import annotations

import dataclasses
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import configs
from turbo_vaed.costs import Budget, Spending
from turbo_vaed.distill.validation import TeacherQuality
from turbo_vaed.gate import early_stop
from turbo_vaed.gate.evidence import LEAST_FLICKER, _quality
from turbo_vaed.gate.output_quality import OutputQuality
from turbo_vaed.models import PRESETS
from turbo_vaed.planning.training_job import teacher_targets_spec
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tiny_teacher: Path) -> Workspace:
    """The demo's, with a teacher; `education` requires 22 dB and 0.95 of the teacher's."""
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
    return early_stop.early_stop_target(
        workspace,
        teacher_targets_spec(
            workspace, PRESETS["tiny-ltx"], Settings.from_environment(workspace.root)
        ),
        ray_address=None,
        spending=spending,
        report_progress=lambda *_: None,
    )


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> list[TeacherQuality]:
    """Its quality on the validation clips, to be replaced."""
    known = [TeacherQuality(psnr=30.0, detail=0.8, flicker=0.002)]

    def measure(wanted: Any, *, check_budget: Any, **_: Any) -> TeacherQuality:
        check_budget(0.0)
        return known[0]

    monkeypatch.setattr(early_stop, "teacher_quality", measure)
    return known


@pytest.mark.slow
def test_the_gates_thresholds_and_the_margin(
    workspace: Workspace, teacher: list[TeacherQuality], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `education`; thresholds relative to the teacher become absolute limits."""
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
    for figure in ("29.00 dB", "28.50 dB", "0.95", "30.00 dB", "0.5 dB"):
        assert figure in found.rationale
    printed = capsys.readouterr().out
    for part in (found.rationale, "ssim >= 0.6", "worst_psnr >= 16.5", "flicker <= 0.006"):
        assert part in printed
    teacher[0] = dataclasses.replace(teacher[0], psnr=20.0)
    found = target(workspace, 0.0)
    assert found.limits["worst_psnr"] == 16.0
    assert found.psnr == 22.0
    assert "22.00 dB" in found.rationale and "20.00 dB" in found.rationale


def test_without_a_margin_the_teacher_is_not_measured(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(early_stop, "teacher_quality")
    assert target(workspace, None) is None


def test_a_flicker_limit_has_a_least_value_and_needs_a_teachers_flicker(
    workspace: Workspace, teacher: list[TeacherQuality]
) -> None:
    teacher[0] = dataclasses.replace(teacher[0], flicker=LEAST_FLICKER / 10)
    assert target(workspace, 0.5).limits["flicker"] == pytest.approx(3.0 * LEAST_FLICKER)
    teacher[0] = dataclasses.replace(teacher[0], flicker=None)
    assert "flicker" not in target(workspace, 0.5).limits


@pytest.mark.parametrize("name", ["detail", "flicker"])
def test_a_limit_relative_to_the_teacher_is_the_gates_ratio(
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
    output = OutputQuality(quality=quality, clips=clips, parity_psnr_db=None)
    figures, _ = _quality(output, {"clips": rows, "worst_share": 0.05}, 0.95)
    thresholds = workspace.params.thresholds
    checks = {
        "detail": ("detail_retention", thresholds.min_detail_retention),
        "flicker": ("flicker_ratio", thresholds.max_flicker),
    }
    check, required = checks[name]
    assert figures[check] == pytest.approx(required)


def test_no_early_stop_where_the_budget_does_not_cover_the_teacher(
    workspace: Workspace, teacher: list[TeacherQuality], capsys: pytest.CaptureFixture[str]
) -> None:
    assert target(workspace, 0.5, usd="0.1") is None
    assert "no early stop" in capsys.readouterr().out
