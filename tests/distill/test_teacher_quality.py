"""The teacher on the validation clips: the right clips, once, and only what can be paid."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.dataset.latents import to_network
from turbo_vaed.distill import validation as module
from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec
from turbo_vaed.distill.validation import TeacherQuality, teacher_quality
from turbo_vaed.errors import BudgetRefused, CorruptFile, DataRefused
from turbo_vaed.metrics import detail, flicker
from turbo_vaed.models.teachers import load_teacher

SPLITS = ["train", "val", "test", "val", "val"]
VAL = [1, 3, 4]


def write(store: Path, name: str, values: np.ndarray) -> None:
    group = zarr.open_group(str(store), mode="w", zarr_format=3)
    array = create_clip_array(
        group, name, clips=5, shape=values.shape[1:], dtype=str(values.dtype), is_compressed=True
    )
    array[:] = values


@pytest.fixture
def spec(tmp_path: Path, tiny_teacher: Path) -> TeacherTargetsSpec:
    """Five clips of 5 frames of 32x32, with the teacher's own latents."""
    teacher = load_teacher("ltx-video", tiny_teacher)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (5, 5, 32, 32, 3), dtype=np.uint8)
    arrays = {
        ("clip", "clips.zarr", "video"): video,
        ("encode", "latents.zarr", "latents"): teacher.encode(to_network(video)).numpy(),
    }
    for (folder, store, name), values in arrays.items():
        write(tmp_path / folder / store, name, values)
    clips = [{"index": i, "split": split} for i, split in enumerate(SPLITS)]
    (tmp_path / "clip" / "clips.json").write_text(json.dumps({"clips": clips}))
    facts = {"compression": [4, 8, 8], "teacher_sha256": teacher.sha256, "tiles": 2}
    (tmp_path / "encode" / "latents.json").write_text(json.dumps(facts))
    return TeacherTargetsSpec(
        family="ltx-video",
        weights=str(shutil.copytree(tiny_teacher, tmp_path / "teacher")),
        clips=str(tmp_path / "clip"),
        latents=str(tmp_path / "encode"),
        targets=str(tmp_path / "targets"),
        blocks=("mid_block",),
        reconstruction=False,
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Without Ray: the worker is this process; the clips of every pass are noted."""
    calls: list[list[int]] = []

    def pass_over(worker: Any, arguments: Any, clips: Any, *, batch_size: int, check_budget: Any,
                  **_: Any) -> None:  # fmt: skip
        check_budget(0.0)
        calls.append(list(clips))
        made = worker(*arguments, device="cpu")
        for start in range(0, len(clips), batch_size):
            made({"index": np.array(clips[start : start + batch_size])})

    monkeypatch.setattr(module, "pass_over_clips", pass_over)
    return calls


def expected(spec: TeacherTargetsSpec) -> TeacherQuality:
    """PSNR written down a second time, and unrounded."""
    video = zarr.open_group(f"{spec.clips}/clips.zarr", mode="r")["video"][:][VAL]
    latents = zarr.open_group(f"{spec.latents}/latents.zarr", mode="r")["latents"][:][VAL]
    teacher = load_teacher(spec.family, spec.weights)
    with torch.no_grad():
        decoded = teacher.decode(torch.from_numpy(latents)).clamp(-1, 1).numpy()
    source = video.transpose(0, 4, 1, 2, 3) / 255.0
    error = ((decoded.astype(float) + 1) / 2 - source) ** 2
    psnr = float(np.mean(-10 * np.log10(error.mean(axis=(1, 2, 3, 4)))))
    pairs = [
        [torch.from_numpy(each[i].transpose(1, 0, 2, 3)) for each in ((decoded + 1) / 2, source)]
        for i in range(len(VAL))
    ]
    return TeacherQuality(
        psnr=psnr,
        detail=float(np.mean([detail(*pair) for pair in pairs])),
        flicker=float(np.mean([flicker(*pair) for pair in pairs])),
    )


def near(found: TeacherQuality) -> Any:
    return pytest.approx(dataclasses.asdict(found), abs=1e-4)


def test_teacher_quality_is_the_mean_over_the_validation_clips_computed_once(spec, passes) -> None:
    found = teacher_quality(spec, batch_size=2)
    assert dataclasses.asdict(found) == near(expected(spec))
    other = dataclasses.replace(spec, blocks=(), reconstruction=True)  # another recipe
    assert teacher_quality(other, batch_size=1) == found
    assert passes == [VAL]


def test_other_clips_or_another_teacher_are_measured_anew(spec, passes) -> None:
    first = teacher_quality(spec, batch_size=2)
    path = Path(spec.clips) / "clips.json"
    clips = json.loads(path.read_text())["clips"]
    clips[4]["split"] = "test"
    path.write_text(json.dumps({"clips": clips}))
    assert teacher_quality(spec, batch_size=2) != first
    assert passes == [VAL, VAL[:2]]


def test_a_truncated_file_of_facts_is_measured_anew(spec, passes) -> None:
    found = teacher_quality(spec, batch_size=2)
    path = Path(spec.targets) / "teacher.json"
    path.write_text(path.read_text()[:-5])
    assert teacher_quality(spec, batch_size=2) == found
    assert passes == [VAL, VAL]


def test_facts_of_an_earlier_version_are_measured_anew(spec, passes) -> None:
    """Those of the PSNR alone."""
    found = teacher_quality(spec, batch_size=2)
    path = Path(spec.targets) / "teacher.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({"key": facts["key"], "psnr": found.psnr, "clips": 3}))
    assert teacher_quality(spec, batch_size=2) == found
    assert passes == [VAL, VAL]


def test_figures_of_every_clip_are_kept(spec, passes) -> None:
    found = teacher_quality(spec, batch_size=2)
    kept = zarr.open_group(f"{spec.targets}/teacher.zarr", mode="r")
    for name, mean in dataclasses.asdict(found).items():
        assert np.mean(kept[name][:][VAL]) == mean
        assert len(set(kept[name][:][VAL])) == len(VAL)


def test_clips_of_one_frame_have_no_flicker(spec, passes) -> None:
    """The teacher's latents of one frame, and the first frames of the clips."""
    teacher = load_teacher("ltx-video", Path(spec.weights))
    video = zarr.open_group(f"{spec.clips}/clips.zarr", mode="r")["video"][:][:, :1]
    write(Path(spec.clips) / "clips.zarr", "video", video)
    latents = teacher.encode(to_network(video)).numpy()
    write(Path(spec.latents) / "latents.zarr", "latents", latents)
    found = teacher_quality(spec, batch_size=2)
    assert found.flicker is None and found.psnr > 0
    assert teacher_quality(spec, batch_size=2) == found
    assert passes == [VAL]


def test_a_measurement_beyond_the_budget_does_not_start(spec, passes) -> None:
    def refuse(seconds: float) -> None:
        raise BudgetRefused("nothing is left")

    with pytest.raises(BudgetRefused):
        teacher_quality(spec, batch_size=2, check_budget=refuse)
    assert passes == []
    assert not (Path(spec.targets) / "teacher.json").exists()


def test_clips_that_do_not_belong_to_the_teacher_are_refused(spec, passes) -> None:
    facts = Path(spec.latents) / "latents.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"teacher_sha256": "0" * 64}))
    with pytest.raises(CorruptFile, match="stage `encode`"):
        teacher_quality(spec, batch_size=2)
    (Path(spec.clips) / "clips.json").write_text(json.dumps({"clips": []}))
    with pytest.raises(DataRefused, match="val split"):
        teacher_quality(spec, batch_size=2)
