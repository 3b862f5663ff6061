"""The teacher's quality on the validation clips: what a student's is compared with.

Only a run with a target wants it. The few clips are decoded once, by the latents that are there
already, and their means are kept beside the cache of targets. The frames are unrounded, as a
student's validation has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from fsspec.core import url_to_fs

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array, open_for_writing
from turbo_vaed.dataset.clip_pass import Device, pass_over_clips
from turbo_vaed.dataset.latents import CLIPS_REMEDY, to_network
from turbo_vaed.distill.data import TARGETS_REMEDY, read_json
from turbo_vaed.distill.teacher_cache import CacheWriter, TeacherTargetsSpec
from turbo_vaed.distill.validation import Metric, frames, metrics_of
from turbo_vaed.errors import CorruptFile, DataRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FACTS, _STORE, _QUALITY = "teacher.json", "teacher.zarr", "quality"


@dataclass(frozen=True, kw_only=True)
class TeacherQuality:
    """Means over the validation clips, against the source."""

    psnr: float
    """dB."""
    detail: float
    flicker: float | None = None
    """None of clips of one frame."""


def teacher_quality(
    wanted: TeacherTargetsSpec,
    *,
    batch_size: int,
    ray_address: str | None = None,
    afford: Callable[[float], None] = lambda seconds: None,
    tell: Callable[[int, int], None] = lambda done, clips: None,
) -> TeacherQuality:
    """That of an earlier run with the same, or from Ray.

    Args:
        wanted: of which teacher, for which clips; its targets are not looked at.
        batch_size: clips of one call of the teacher.
        ray_address, afford: as `pass_over_clips` takes them.
        tell: told how many of how many clips are done, where any has to be.

    Raises:
        DataRefused: there is no validation clip.
        CorruptFile: a file of the teacher, or of the clips and latents.
        TurboVaedError: as `pass_over_clips`, and what `afford` raises.
    """
    wanted = replace(wanted, blocks=(), reconstruction=True)
    files, root = url_to_fs(wanted.targets)
    try:
        known = read_json(f"{wanted.targets}/{_FACTS}", TARGETS_REMEDY)
    except CorruptFile:
        known = {}
    if known.get("key") == wanted.key() and _QUALITY in known:  # before, there was PSNR alone
        return TeacherQuality(**known[_QUALITY])
    index = read_json(f"{wanted.clips}/clips.json", CLIPS_REMEDY)["clips"]
    clips = [clip["index"] for clip in index if clip["split"] == "val"]
    if not clips:
        raise DataRefused("no clip in the val split; add videos or lower clip.frames")
    _create(wanted, len(index))
    tell(0, len(clips))
    pass_over_clips(
        Scorer,
        (wanted,),
        clips,
        batch_size=batch_size,
        label="the teacher on validation clips",
        ray_address=ray_address,
        afford=afford,
        tell=lambda done: tell(done, len(clips)),
    )
    means = {}
    for name in _metrics(_video(wanted)):
        found = ClipArray(f"{wanted.targets}/{_STORE}", name, remedy=TARGETS_REMEDY)
        means[name] = float(np.mean([found[clip] for clip in clips]))
    quality = TeacherQuality(**means)
    facts = {"key": wanted.key(), _QUALITY: asdict(quality), "clips": len(clips)}
    files.pipe_file(f"{root}/{_FACTS}", json.dumps(facts).encode())
    return quality


def _video(wanted: TeacherTargetsSpec) -> ClipArray:
    return ClipArray(f"{wanted.clips}/clips.zarr", "video", remedy=CLIPS_REMEDY)


def _metrics(video: ClipArray) -> dict[str, Metric]:
    """Those that a student's are a share or a multiple of, by name."""
    return {name: of for name, of in metrics_of(video.shape[1]).items() if name != "ms_ssim"}


def _create(wanted: TeacherTargetsSpec, clips: int) -> None:
    import zarr

    group = zarr.open_group(f"{wanted.targets}/{_STORE}", mode="w", zarr_format=3)
    for name in _metrics(_video(wanted)):
        create_clip_array(group, name, clips=clips, shape=(), dtype="float64", is_compressed=False)


class Scorer:
    """A worker of `pass_over_clips`: decodes clips and writes their figures."""

    def __init__(self, wanted: TeacherTargetsSpec, *, device: Device) -> None:
        self.teacher = CacheWriter(wanted, device=device)
        self.video = _video(wanted)
        self.metrics = _metrics(self.video)
        store = f"{wanted.targets}/{_STORE}"
        self.arrays = {name: open_for_writing(store, name) for name in self.metrics}

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Write the figures of the clips of `index`, and hand the indices back."""
        clips = [int(i) for i in batch["index"]]
        decoded = self.teacher.teacher.decode(self.teacher.read(clips)).float().cpu()
        for clip, video in zip(clips, decoded, strict=True):
            source = frames(to_network(self.video[clip][None]))
            for name, of in self.metrics.items():
                self.arrays[name][clip] = float(of(frames(video[None]), source))
        return batch
