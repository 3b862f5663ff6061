"""evaluate and export on made-up clips, with a random teacher and student, for real."""

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from turbo_vaed.errors import CorruptFile, Fault, UserError
from turbo_vaed.export import load_package
from turbo_vaed.metrics import clip_quality
from turbo_vaed.stages import evaluate, export
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

TESTS = [1, 3, 4]


def weights_of(workspace: Workspace) -> Path:
    return workspace.folder("distill") / "student" / "model.safetensors"


def only_validation(clips):
    return [{**clip, "split": "val"} for clip in clips]


def poison(workspace: Workspace) -> None:
    path = weights_of(workspace)
    weights = load_file(path)
    config = (path.parent / "config.json").read_text()
    weights["decoder.conv_in.conv.bias"][0] = float("nan")
    save_file(weights, path, metadata={"config": config, "format": "pt"})


def test_evaluation_is_of_the_test_clips_only(judged, files):
    evaluation = files.read(judged.workspace, "evaluate", "evaluation.json")
    assert [clip["index"] for clip in evaluation["clips"]] == TESTS
    assert [clip["path"] for clip in evaluation["clips"]] == ["b.mp4", "b.mp4", "a.mp4"]
    assert [clip["start_frame"] for clip in evaluation["clips"]] == [9, 27, 36]
    assert evaluation["worst_share"] == judged.workspace.params.evaluate.worst_share


def test_evaluation_figures_are_those_of_the_metrics(judged, files):
    evaluation = files.read(judged.workspace, "evaluate", "evaluation.json")
    source = files.stored(judged.workspace, "clip", "clips.zarr", "video")
    teacher = files.stored(judged.workspace, "encode", "latents.zarr", "reconstruction")
    student = files.student_video(judged.workspace)
    for i, clip in enumerate(evaluation["clips"]):
        expected = {
            "teacher": clip_quality(teacher[clip["index"]], source[clip["index"]]),
            "student": clip_quality(student[i], source[clip["index"]]),
        }
        for who, quality in expected.items():
            assert clip[who] == pytest.approx(quality, abs=1e-3)
    for who in ("teacher", "student"):
        for name in ("psnr", "ssim", "ms_ssim"):
            values = [clip[who][name] for clip in evaluation["clips"]]
            assert evaluation[who][name]["mean"] == pytest.approx(statistics.mean(values))
            assert evaluation[who][name]["worst"] == pytest.approx(min(values))
    worst = min(evaluation["clips"], key=lambda clip: clip["student"]["psnr"])
    assert evaluation["worst_clip"] == worst["index"]


def test_retention_is_student_over_teacher(judged, files):
    evaluation = files.read(judged.workspace, "evaluate", "evaluation.json")
    for name, share in evaluation["retention"].items():
        means = (evaluation[who][name]["mean"] for who in ("student", "teacher"))
        assert share == pytest.approx(next(means) / next(means))
    assert judged.figures.evaluate["psnr_retention"] == evaluation["retention"]["psnr"]


def test_evaluation_does_not_depend_on_the_batch_size(judged, judged_copy, files):
    section = dataclasses.replace(judged_copy.params.evaluate, batch_size=3)
    params = dataclasses.replace(judged_copy.params, evaluate=section)
    other = dataclasses.replace(judged_copy, params=params)
    evaluate.run(other)
    found = files.read(other, "evaluate", "evaluation.json")
    expected = files.read(judged.workspace, "evaluate", "evaluation.json")
    for a, b in zip(found["clips"], expected["clips"], strict=True):
        assert a["student"] == pytest.approx(b["student"], abs=1e-3)


def test_stage_figures_are_valid_json(judged):
    assert judged.figures.gate["result"] == "passes"
    assert judged.figures.gate["psnr"] > 1
    json.dumps(vars(judged.figures), allow_nan=False)


def test_a_student_of_nan_is_a_fault_and_leaves_the_old_evaluation_alone(judged_copy, files):
    before = files.read(judged_copy, "evaluate", "evaluation.json")
    poison(judged_copy)
    with pytest.raises(Fault, match=r"NaN .*\[1, 3\]"):
        evaluate.run(judged_copy)
    assert files.read(judged_copy, "evaluate", "evaluation.json") == before
    assert not (judged_copy.work / ".evaluate.partial").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p, _: shutil.rmtree(p.folder("clip") / "clips.zarr"), "clips.zarr"),
        (lambda p, _: shutil.rmtree(p.folder("encode") / "latents.zarr" / "latents"), "latents"),
        (lambda p, files: files.shorten(p.folder("clip") / "clips.json"), "clips.json"),
        (lambda p, files: files.shorten(weights_of(p)), "distill"),
        (lambda p, _: shutil.rmtree(p.folder("distill")), "distill"),
        (lambda p, files: files.rewrite_clips(p, lambda clips: clips[:4]), "clips.json 4 clips"),
        (lambda p, files: files.rewrite_clips(p, only_validation), "test clip"),
    ],
)
@pytest.mark.parametrize("stage", [evaluate, export])
def test_a_damaged_input_is_named(judged_copy, stage, damage, message, files):
    damage(judged_copy, files)
    name = stage.__name__.rpartition(".")[2]
    shutil.rmtree(judged_copy.folder(name))
    with pytest.raises(CorruptFile, match=message):
        stage.run(judged_copy)
    assert not judged_copy.folder(name).exists()


def test_a_missing_reconstruction_is_not_judged_as_black(judged_copy):
    store = judged_copy.folder("encode") / "latents.zarr"
    shutil.rmtree(store / "reconstruction" / "c" / "3")
    with pytest.raises(CorruptFile, match=r"'reconstruction' .*clip 3 .*missing"):
        evaluate.run(judged_copy)


def test_a_package_takes_one_clip_of_these_latents(judged, files):
    package = load_package(files.package(judged.workspace))
    assert package.io.latent_shape == (1, 8, 3, 4, 4)
    assert package.io.video_shape == (1, 3, 5, 32, 32)
    assert package.target == "executorch-xnnpack/fp32"
    figures = judged.figures.export
    assert figures["executorch-xnnpack/fp32 sha256"] == package.sha256
    size = figures["executorch-xnnpack/fp32 MB"]
    assert size == pytest.approx(package.size_bytes / 1e6, abs=1e-3)


def test_an_unknown_target_is_refused_with_the_known_ones(judged_copy):
    section = dataclasses.replace(judged_copy.params.export, targets=("executorch-xnnpack/fp8",))
    params = dataclasses.replace(judged_copy.params, export=section)
    with pytest.raises(UserError, match=r"export\.targets: .*fp8.*executorch-xnnpack/fp32"):
        export.run(dataclasses.replace(judged_copy, params=params))


def test_further_shapes_become_programs_of_their_own(shaped, files):
    """For a longer, higher video than a clip's, and one that the device's apps decode at once: the
    package's I/O specs say so."""
    package = load_package(files.package(shaped.workspace))
    assert [one.shape for one in package.programs] == ["5x32x32", "9x48x32", "5x64x96"]
    assert package.programs[1].io.latent_shape == (1, 8, 5, 6, 4)
    assert shaped.figures["executorch-xnnpack/fp32 sha256"] == package.sha256
    parity = files.read(shaped.workspace, "export", "parity.json")
    assert list(parity) == [
        "executorch-xnnpack-fp32",
        "executorch-xnnpack-fp32-9x48x32",
        "executorch-xnnpack-fp32-5x64x96",
    ]
    assert min(one["parity_psnr_db"] for one in parity.values()) >= 80


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 32, 32), r"shapes: \[8, 32, 32\]: frames: found 8, allowed: 1 and every 2 more"),
        ((9, 36, 32), "height: found 36, allowed: multiples of 8"),
        ((9, 32, 4), "width: found 4, allowed: multiples of 8"),
    ],
)
def test_a_shape_that_the_student_cannot_decode_to_is_refused(judged_copy, shape, message):
    section = dataclasses.replace(judged_copy.params.export, shapes=(shape,))
    params = dataclasses.replace(judged_copy.params, export=section)
    with pytest.raises(UserError, match=message):
        export.run(dataclasses.replace(judged_copy, params=params))


def test_a_missing_converter_is_refused_with_the_command_to_make_it(
    judged_copy, monkeypatch, tmp_path
):
    monkeypatch.setenv("TURBO_VAED_LITERT", str(tmp_path / "nothing"))
    section = dataclasses.replace(judged_copy.params.export, targets=("litert/fp32",))
    params = dataclasses.replace(judged_copy.params, export=section)
    with pytest.raises(UserError, match="make litert"):
        export.run(dataclasses.replace(judged_copy, params=params))
