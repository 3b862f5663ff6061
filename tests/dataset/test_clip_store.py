from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import zarr

from turbo_vaed.dataset.clip_store import cut_clips, read_description, write_description
from turbo_vaed.dataset.clips import ClipPlan, SourceVideo, plan_clips
from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import sha256_file


def source(path: Path, frames: int, width: int, height: int) -> SourceVideo:
    return SourceVideo(
        path=path.name,
        sha256=sha256_file(path),
        width=width,
        height=height,
        frames=frames,
        fps=25.0,
    )


def plan(*videos: SourceVideo) -> ClipPlan:
    return plan_clips(
        videos, frames=5, size=32, clips_per_video=8, train_share=0.6, val_share=0.2, seed=3
    )


@pytest.fixture
def made(tmp_path: Path, make_video) -> tuple[Path, ClipPlan]:
    a = make_video(tmp_path / "a.mp4", frames=33, width=49, height=35, seed=1)
    b = make_video(tmp_path / "b.mp4", frames=27, width=64, height=48, seed=2)
    return tmp_path, plan(source(a, 33, 49, 35), source(b, 27, 64, 48))


def test_every_clip_holds_the_pixels_of_its_place(made: tuple[Path, ClipPlan]) -> None:
    folder, clips = made
    cut_clips(clips, folder, folder)
    video = zarr.open_array(str(folder / "clips.zarr"), path="video", mode="r")
    assert video.metadata.zarr_format == 3
    assert video.shape == (16, 5, 32, 32, 3) and video.chunks == (1, 5, 32, 32, 3)
    whole = {}
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(folder / name)) as container:
            whole[name] = np.stack(
                [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            )
    for clip in clips.clips:
        expected = whole[clip.path][
            clip.start_frame : clip.start_frame + 5, clip.y : clip.y + 32, clip.x : clip.x + 32
        ]
        np.testing.assert_array_equal(video[clip.index], expected)


def test_the_description_agrees_with_the_plan(made: tuple[Path, ClipPlan]) -> None:
    folder, clips = made
    cut_clips(clips, folder, folder)
    found = read_description(folder / "clips.json")
    assert found["clips"] == [dataclasses.asdict(clip) for clip in clips.clips]
    assert found["counts"] == clips.counts and sum(found["counts"].values()) == 16
    assert (found["frames"], found["size"], found["split_by"]) == (5, 32, "time")
    assert found["split_reason"] == clips.split_reason and found["left_out"] == []


def test_the_bytes_of_a_description_never_change(tmp_path: Path) -> None:
    """A checkpoint is found by them: other bytes, and paid training begins anew."""
    video = SourceVideo(
        path="Straße.mp4", sha256="0" * 64, width=48, height=32, frames=60, fps=25.0
    )
    write_description(plan(video), tmp_path / "clips.json")
    digest = "c56007ff46035ff70f2c25061e1dac032cf45e3772b82e9eaf53230fec26270a"
    assert sha256_file(tmp_path / "clips.json") == digest


def test_a_video_changed_since_validation_is_refused(
    made: tuple[Path, ClipPlan], make_video
) -> None:
    folder, clips = made
    make_video(folder / "b.mp4", frames=27, width=64, height=48, seed=5)
    with pytest.raises(CorruptFile, match=r"b\.mp4 has changed"):
        cut_clips(clips, folder, folder)
    (folder / "b.mp4").unlink()
    with pytest.raises(CorruptFile, match=rf"b\.mp4 .*{os.strerror(errno.ENOENT)}"):
        cut_clips(clips, folder, folder)


def test_a_video_that_ends_before_its_clips_is_refused(tmp_path: Path, make_video) -> None:
    path = make_video(tmp_path / "a.mp4", frames=33, width=64, height=48)
    with pytest.raises(CorruptFile, match=r"a\.mp4 .*frame 33, .*\b50"):
        cut_clips(plan(source(path, 50, 64, 48)), tmp_path, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"frames": 5})])
def test_a_broken_description_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "clips.json"
    with pytest.raises(CorruptFile, match=r"clips\.json .*stage `clip`"):
        read_description(path)
    path.write_text(content)
    with pytest.raises(CorruptFile, match=r"clips\.json.*stage `clip`"):
        read_description(path)
