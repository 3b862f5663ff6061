"""How long a run should take by the FLOPs of its student and its teacher."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.planning.customer import (
    with_distill,
)
from turbo_vaed.models.teachers import teacher_flops
from turbo_vaed.planning.flops import (
    expected_pace,
    expected_timing,
    step_flops,
    teacher_work,
)
from turbo_vaed.settings import Settings
from turbo_vaed.workspace import Workspace


@pytest.mark.slow
@pytest.mark.usefixtures("machine_speed")
def test_a_student_of_more_work_is_expected_to_take_longer(
    workspace: Workspace, settings: Settings
) -> None:
    found, twice = expected_pace(workspace, settings), with_distill(workspace, batch_size=8)
    assert found is not None and 0 < found.least < found.mean < found.most
    assert step_flops(twice) == 2 * step_flops(workspace)
    assert step_flops(workspace) > 3e9, "convolutions are counted"


@pytest.mark.slow
@pytest.mark.usefixtures("machine_speed")
def test_the_teachers_work_is_part_of_the_estimate(
    workspace: Workspace, settings: Settings
) -> None:
    """Of the demo: 3 videos of 24 clips at most, until they are cut; a tenth of them is decoded in
    `encode`. Towards its targets the teacher decodes every train clip once, or in every step a
    crop of a quarter of a clip, whichever is less."""
    one = teacher_flops("ltx-video", workspace.teacher_weights(), 9, 128, 128)
    encoding, targets = teacher_work(workspace)
    assert encoding == pytest.approx(72 * (one.encode + 0.1 * one.decode))
    assert targets == pytest.approx(72 * 0.8 * one.decode), "1000 steps of 4 crops are more"
    alone = with_distill(workspace, weight_teacher=0.0)
    assert teacher_work(alone) == (encoding, 0) and teacher_work(alone, ["distill"]) == (0, 0)
    workspace.folder("clip").mkdir()
    cut: dict[str, Any] = {"frames": 9, "size": 128, "clips": [{}] * 36}
    (workspace.folder("clip") / "clips.json").write_text(json.dumps(cut))
    assert teacher_work(workspace) == (encoding, targets), "they will be cut again"
    assert teacher_work(workspace, ["encode", "distill"]) == (encoding / 2, targets / 2)
    few = with_distill(workspace, steps=10)
    assert teacher_work(few, ["distill"]) == (0, pytest.approx(10 * 4 / 4 * one.decode))
    cached = with_distill(workspace, steps=10, teacher_targets="cache")
    assert teacher_work(cached, ["distill"]) == (0, targets / 2)
    found = expected_timing(workspace, settings)
    less = expected_timing(workspace, settings, ["distill"])
    assert found is not None and 0 < found.once.least < found.once.mean < found.once.most
    assert less is not None and less.once.mean < found.once.mean
