"""The student of a run: a preset that fits its teacher, or one derived from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import configs
from turbo_vaed.errors import UserError
from turbo_vaed.models import PRESETS
from turbo_vaed.models.sizing import count_parameters
from turbo_vaed.models.teachers import TeacherFiles
from turbo_vaed.planning.compatibility import student_config
from turbo_vaed.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
DECODER_PARAMETERS = 5_793_116
"""Of the demo's teacher."""


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """`make_workspace(section={key: value})`: a customer with the demo's teacher."""

    def make(**overrides: dict[str, Any]) -> Workspace:
        document = configs.read()
        document["customers"] = {"acme": {"source": "videos", "use_case": "education", **overrides}}
        configs.write(tmp_path, document)
        teacher = "assets/teachers/tiny-ltx"
        shutil.copytree(REPOSITORY / teacher, tmp_path / teacher)
        return Workspace.load(tmp_path, "acme")

    return make


def test_a_preset_is_taken_as_it_is(make_workspace) -> None:
    assert student_config(make_workspace(distill={"student": "tiny-ltx"})) == PRESETS["tiny-ltx"]


@pytest.mark.slow
def test_checking_params_does_not_hash_the_weights(make_workspace, monkeypatch) -> None:
    """They are gigabytes, and it is asked several times a run."""
    hashed: list[TeacherFiles] = []
    monkeypatch.setattr(TeacherFiles, "sha256", hashed.append)
    student_config(make_workspace(distill={"student": "auto"}))
    assert not hashed


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [None, 0.05])
def test_auto_is_derived_from_the_teacher(make_workspace, fraction: float | None) -> None:
    own = {} if fraction is None else {"student_fraction": fraction}
    student = student_config(make_workspace(distill={"student": "auto", **own}))
    assert (student.latent_channels, student.temporal_compression) == (32, 4)
    assert student.spatial_compression == 8
    assert 0.9 < count_parameters(student) / ((fraction or 0.175) * DECODER_PARAMETERS) <= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distill": {"student": "mine"}}, "distill.student .*'mine'; allowed: auto, turbo-vaed"),
        (
            {"distill": {"student": "turbo-vaed-dc"}},
            r"\b128\b.*\b4\b.*\b32\b.*teacher.*\b32, 4 and 8\b.*distill\.student.* auto",
        ),
        (
            {"distill": {"student": "auto", "student_fraction": 0.01}},
            r"assets/.*budget_fraction: found 0\.01.*distill\.student_fraction",
        ),
        ({"clip": {"frames": 16}}, r"clip.frames is 16; .* 4k\+1 frames: set .* to 13 or 17"),
        ({"clip": {"frames": 1}}, "clip.frames is 1, .*clip.frames to 5 or more"),
        ({"clip": {"size": 100}}, "clip.size is 100; .* multiples of 8: .* to 96 or 104"),
        ({"distill": {"crop": 60}}, "distill.crop is 60; .* multiples of 8: .* to 56 or 64"),
        ({"distill": {"crop": 32}}, r"encode\.tile is 64, distill\.crop 32"),
        ({"encode": {"tile": 48}}, r"encode\.tile is 48, .*clip\.size, 128"),
        ({"encode": {"tile": 60}}, "encode.tile is 60; .* multiples of 8: .* to 56 or 64"),
        ({"encode": {"teacher_family": "mochi"}}, "AutoencoderKLMochi, .*AutoencoderKLLTXVideo"),
    ],
)
def test_params_that_do_not_fit_together_are_refused(
    make_workspace, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        student_config(make_workspace(**overrides))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("distill", "student_fraction", 0, "distill.student_fraction"),
        ("distill", "student_fraction", 1.5, "distill.student_fraction"),
        ("encode", "teacher_family", "vae", "encode.teacher_family: found 'vae'; .*'cosmos'"),
    ],
)
def test_impossible_params_are_refused(
    make_workspace, section: str, key: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_workspace(**{section: {key: value}})
