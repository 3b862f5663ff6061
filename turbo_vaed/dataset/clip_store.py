"""clips.zarr and clips.json: the clips of a plan, decoded.

`video` uint8 (N,T,H,W,3) RGB, a chunk per clip. Videos are decoded one after another in this
process: each of them has decoded whole in the probe's child, and only the crops of one slot are
held in memory. The file names no codec: colours are FFmpeg's default conversion to RGB.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbo_vaed.dataset.clip_arrays import create_clip_array
from turbo_vaed.dataset.clips import Clip, ClipPlan
from turbo_vaed.dataset.video import frames_of, open_video
from turbo_vaed.errors import CorruptFile
from turbo_vaed.runtime.files import read_json, sha256_file, write_text
from turbo_vaed.runtime.progress import track


def cut_clips(plan: ClipPlan, source: Path, folder: Path) -> None:
    """Decode the plan's clips into `folder`/clips.zarr, and describe them in clips.json.

    Args:
        plan: what to cut.
        source: the folder that the clips' paths are relative to.
        folder: an existing folder.

    Raises:
        CorruptFile: a video is not the one that was validated, or ends before its clips do.
    """
    import zarr

    count, shape = len(plan.clips), (plan.frames, plan.size, plan.size, 3)
    group = zarr.open_group(str(folder / "clips.zarr"), mode="w", zarr_format=3)
    video = create_clip_array(
        group, "video", clips=count, shape=shape, dtype="uint8", is_compressed=True
    )
    for clip, pixels in track(_decode(plan, source), "cutting clips", count):
        video[clip.index] = pixels
    write_description(plan, folder / "clips.json")


def write_description(plan: ClipPlan, path: Path) -> None:
    """clips.json: the plan as plain JSON, with the count of each split.

    Its bytes are part of a student's identity (`distill.job.data_key`): if they change, the
    customer's training begins anew.
    """
    document = {
        "split_by": plan.split_by,
        "split_reason": plan.split_reason,
        "frames": plan.frames,
        "size": plan.size,
        "counts": plan.counts,
        "left_out": [{"path": path, "reason": reason} for path, reason in plan.left_out],
        "clips": [dataclasses.asdict(clip) for clip in plan.clips],
    }
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_description(path: Path) -> dict[str, Any]:
    """The content of clips.json.

    Raises:
        CorruptFile: missing, not JSON, or without what belongs to it.
    """
    remedy = "run the stage `clip` again"
    try:
        document = read_json(path, remedy=remedy)
    except FileNotFoundError:
        raise CorruptFile(f"{path} does not exist; {remedy}") from None
    for key in ("frames", "size", "clips"):
        if key not in document:
            raise CorruptFile(f"{path} lacks {key!r}; {remedy}")
    return document


def _decode(plan: ClipPlan, source: Path) -> Iterator[tuple[Clip, NDArray[np.uint8]]]:
    by_path: dict[str, list[Clip]] = defaultdict(list)
    for clip in plan.clips:
        by_path[clip.path].append(clip)
    for path, clips in by_path.items():
        yield from _decode_video(source / path, clips, plan.frames, plan.size)


def _decode_video(
    path: Path, clips: list[Clip], frames: int, size: int
) -> Iterator[tuple[Clip, NDArray[np.uint8]]]:
    """The clips of one video, each (T,H,W,3), as soon as its slot is decoded."""
    import av.error

    _check_unchanged(path, clips[0].sha256)
    at: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        at[clip.start_frame].append(clip)
    last = max(at) + frames - 1
    number = -1
    crops: list[NDArray[np.uint8]] = []
    try:
        with open_video(path) as (container, stream):
            for number, frame in enumerate(frames_of(container, stream)):
                place = number % frames
                cut = at.get(number - place)
                if not cut:
                    continue
                if place == 0:
                    crops = [np.empty((frames, size, size, 3), np.uint8) for _ in cut]
                picture = frame.to_ndarray(format="rgb24")
                for clip, crop in zip(cut, crops, strict=True):
                    crop[place] = picture[clip.y : clip.y + size, clip.x : clip.x + size]
                if place == frames - 1:
                    yield from zip(cut, crops, strict=True)
                if number == last:
                    return
    except av.error.FFmpegError as error:
        raise CorruptFile(f"{path} no longer decodes ({error.strerror}); validate again") from None
    raise CorruptFile(f"{path} ends at frame {number + 1}, clips need {last + 1}; validate again")


def _check_unchanged(path: Path, sha256: str) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read ({error.strerror}); validate again") from None
    if found != sha256:
        raise CorruptFile(
            f"{path} has changed since it was validated: sha256 {found[:12]}…, "
            f"the manifest says {sha256[:12]}…; validate again"
        )
