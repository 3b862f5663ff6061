"""The stages `validate`, `clip` and `encode`, on folders as customers hand them in."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import zarr

from tests import configs
from turbo_vaed.dataset import latents
from turbo_vaed.errors import BudgetRefused, CorruptFile, DataRefused, UserError
from turbo_vaed.stages import clip, encode, validate
from turbo_vaed.workspace import Workspace

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TEACHER = "assets/teachers/tiny"
MakePoc = Callable[..., Workspace]


@pytest.fixture
def make_workspace(tmp_path: Path) -> MakePoc:
    """The workspace of a customer with small clips; its videos belong in `workspace.source`."""

    def make(**overrides: dict[str, Any]) -> Workspace:
        document = configs.read()
        small: dict[str, Any] = {
            "source": "videos",
            "use_case": "education",
            "validate": {"min_side": 32},
            "clip": {"frames": 5, "size": 32, "clips_per_video": 6},
            "distill": {"crop": 32},
            "encode": {"teacher_weights": TEACHER, "batch_size": 4, "tile": 32},
        }
        for section, values in overrides.items():
            small[section] = {**small.get(section, {}), **values}
        document["customers"] = {"acme": small}
        configs.write(tmp_path, document)
        (tmp_path / "videos").mkdir(exist_ok=True)
        return Workspace.load(tmp_path, "acme")

    return make


def listing(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def test_a_mixed_folder_goes_through_with_its_bad_files_named(
    make_workspace: MakePoc, make_video
) -> None:
    workspace = make_workspace(validate={"min_good_share": 0.2, "min_side": 96}, clip={"size": 64})
    good = make_video(workspace.source / "good.mp4", frames=60, seed=1)
    make_video(workspace.source / "odd.mp4", frames=60, width=161, height=123, seed=2)
    make_video(workspace.source / "small.mp4", width=64, height=64, seed=3)
    make_video(workspace.source / "brief.mp4", frames=4, seed=4)
    shutil.copy(good, workspace.source / "zcopy.mp4")
    (workspace.source / "cut.mp4").write_bytes(good.read_bytes()[:-2000])
    (workspace.source / "text.mp4").write_text("not a video\n" * 99)
    (workspace.source / "zero.mp4").touch()
    with av.open(str(workspace.source / "talk.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))

    figures = validate.run(workspace)
    assert (figures["files"], figures["ok"], figures["quarantined"]) == (9, 2, 7)
    folder = workspace.folder("validate")
    assert listing(folder) == {"manifest.parquet", "validation.json", "data_docs"}
    summary = json.loads((folder / "validation.json").read_text())
    assert summary["success"] and summary["ok"] == 2
    reasons = {bad["path"]: bad["reason"] for bad in summary["quarantined"]}
    expected = {
        "small.mp4": "short side is 64 px, at least 96 px is needed",
        "brief.mp4": "0.16 s long, at least 1 s is needed",
        "zcopy.mp4": "exact copy of good.mp4",
        "cut.mp4": "does not decode as a video",
        "text.mp4": "does not decode as a video",
        "zero.mp4": "empty",
        "talk.m4a": "only audio",
    }
    assert reasons.keys() == expected.keys()
    for path, words in expected.items():
        assert words in reasons[path]
    assert set(summary["expectations"][0]) == {
        "name", "column", "severity", "success", "observed", "expected"
    }  # fmt: skip
    manifest = pd.read_parquet(folder / "manifest.parquet")
    assert list(manifest["path"][manifest["status"] == "ok"]) == ["good.mp4", "odd.mp4"]

    figures = clip.run(workspace)
    assert listing(workspace.folder("clip")) == {"clips.zarr", "clips.json"}
    assert figures["split_by"] == "time" and figures["clips"] == 12
    description = json.loads((workspace.folder("clip") / "clips.json").read_text())
    assert {c["path"] for c in description["clips"]} == {"good.mp4", "odd.mp4"}
    video = zarr.open_array(str(workspace.folder("clip") / "clips.zarr"), path="video", mode="r")
    assert video.shape == (12, 5, 64, 64, 3)
    assert all(video[i].std() > 5 for i in range(12))


def test_too_few_good_videos_are_refused_and_the_evidence_is_kept(
    make_workspace: MakePoc, make_video
) -> None:
    workspace = make_workspace()
    make_video(workspace.source / "good.mp4")
    (workspace.source / "a.mp4").write_text("text")
    (workspace.source / "b.mp4").touch()
    with pytest.raises(DataRefused) as refusal:
        validate.run(workspace)
    message = str(refusal.value)
    assert re.search(r"1 of 3 files.*\b1 and 50%", message)
    assert "\n  a.mp4: " in message and "\n  b.mp4: " in message
    rejected = workspace.work / "validate.rejected"
    assert str(rejected) in message
    assert listing(workspace.work) == {"validate.rejected"}
    assert not json.loads((rejected / "validation.json").read_text())["success"]
    assert (rejected / "data_docs" / "index.html").is_file()
    assert len(pd.read_parquet(rejected / "manifest.parquet")) == 3

    (workspace.source / "a.mp4").unlink()
    validate.run(workspace)
    assert listing(workspace.work) == {"validate"}, "a refusal that is over leaves nothing behind"


def test_an_empty_and_a_missing_source_folder_are_refused(make_workspace: MakePoc) -> None:
    workspace = make_workspace()
    with pytest.raises(DataRefused, match=str(workspace.source)):
        validate.run(workspace)
    workspace.source.rmdir()
    with pytest.raises(UserError, match=str(workspace.source)):
        validate.run(workspace)
    assert listing(workspace.work) == set()


def test_the_same_folder_gives_the_same_bytes(make_workspace: MakePoc, make_video) -> None:
    workspace = make_workspace()
    make_video(workspace.source / "good.mp4", frames=40)
    results = []
    for _ in range(2):
        validate.run(workspace)
        clip.run(workspace)
        files = [
            workspace.folder("validate") / "manifest.parquet",
            *workspace.folder("clip").rglob("*"),
        ]
        results.append({f: f.read_bytes() for f in files if f.is_file()})
    assert results[0] == results[1]


def test_clips_that_cannot_be_split_leave_no_output(make_workspace: MakePoc, make_video) -> None:
    workspace = make_workspace(clip={"frames": 9})
    make_video(workspace.source / "good.mp4", frames=30)
    with pytest.raises(CorruptFile, match="stage `validate`"):
        clip.run(workspace)
    validate.run(workspace)
    with pytest.raises(DataRefused, match=r"test clip.* 45 frames"):
        clip.run(workspace)
    assert listing(workspace.work) == {"validate"}


def test_encoding_beyond_the_budget_is_refused(clipped: MakePoc) -> None:
    workspace = clipped(budget={"run_usd": 0.001})
    with pytest.raises(BudgetRefused, match=r"encoding .*reserved"):
        encode.run(workspace)
    assert listing(workspace.work) == {"validate", "clip"}


@pytest.fixture
def clipped(make_workspace: MakePoc, make_video, tiny_teacher: Path) -> MakePoc:
    """As `make_workspace`, with clips made and a teacher in place."""

    def make(**overrides: dict[str, Any]) -> Workspace:
        workspace = make_workspace(**overrides)
        make_video(workspace.source / "good.mp4", frames=40)
        shutil.copytree(tiny_teacher, workspace.root / TEACHER)
        validate.run(workspace)
        clip.run(workspace)
        return workspace

    return make


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, here: tests/dataset has those of Ray."""

    def pass_here(
        worker: type, arguments: tuple[Any, ...], clips: range, *, batch_size: int, **_: Any
    ) -> None:
        encode = worker(*pickle.loads(pickle.dumps(arguments)), device="cpu")
        for start in range(0, len(clips), batch_size):
            encode({"index": np.array(clips[start : start + batch_size])})

    monkeypatch.setattr(latents, "pass_over_clips", pass_here)


@pytest.mark.usefixtures("without_ray")
def test_encode_writes_latents_and_their_description(clipped: MakePoc) -> None:
    workspace = clipped()
    figures = encode.run(workspace)
    assert (figures["clips"], figures["latent_shape"]) == (6, [8, 2, 4, 4])
    folder = workspace.folder("encode")
    assert listing(folder) == {"latents.zarr", "latents.json"}
    group = zarr.open_group(str(folder / "latents.zarr"), mode="r")
    assert group["latents"].shape == (6, 8, 2, 4, 4)
    assert group["reconstruction"].shape == (6, 5, 32, 32, 3)
    assert all(np.abs(group["latents"][i]).sum() > 0 for i in range(6))
    document = json.loads((folder / "latents.json").read_text())
    assert document["compression"] == [4, 8, 8] and document["clips"] == 6
    assert document["mean"] == [0.5] * 8 and document["std"] == [2.0] * 8
    assert document["teacher_sha256"] == figures["teacher_sha256"]
    assert document["teacher_decoder_parameters"] > 0
    clips = json.loads((workspace.folder("clip") / "clips.json").read_text())["clips"]
    tests = [c["index"] for c in clips if c["split"] == "test"]
    assert document["reconstructed"] == tests and len(tests) == 1
    assert {int(p.name) for p in (folder / "latents.zarr/reconstruction/c").iterdir()} == set(tests)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"frames": 6}, "clip.frames is 6; .* takes 4k\\+1 frames: set clip.frames to 5 or 9"),
        ({"size": 36}, "clip.size is 36; .* multiples of 8: set clip.size to 32 or 40"),
    ],
)
def test_clips_that_the_teacher_cannot_encode_are_refused(
    clipped: MakePoc, section: dict[str, Any], message: str
) -> None:
    workspace = clipped(clip=section, validate={"min_side": 40})
    with pytest.raises(UserError, match=message):
        encode.run(workspace)
    assert listing(workspace.work) == {"validate", "clip"}


def test_a_corrupt_and_a_missing_teacher_are_refused(clipped: MakePoc) -> None:
    workspace = clipped()
    weights = workspace.root / TEACHER / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=re.escape(weights.name)):
        encode.run(workspace)
    shutil.rmtree(workspace.root / TEACHER)
    with pytest.raises(UserError, match=r"encode\.teacher_weights"):
        encode.run(workspace)
    assert listing(workspace.work) == {"validate", "clip"}
