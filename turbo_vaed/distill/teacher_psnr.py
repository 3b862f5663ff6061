"""The teacher's PSNR on the validation clips: what a student's is to be a share of.

Only a run with a target wants it. The few clips are decoded once, by the latents that are there
already, and their mean is kept beside the cache of targets. It is unrounded, as a student's
validation is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from fsspec.core import url_to_fs

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array, open_for_writing
from turbo_vaed.dataset.clip_pass import Device, pass_over_clips
from turbo_vaed.dataset.latents import CLIPS_REMEDY, to_network
from turbo_vaed.distill.data import TARGETS_REMEDY, read_json
from turbo_vaed.distill.target_cache import TargetWriter, Wanted
from turbo_vaed.distill.validation import frames
from turbo_vaed.errors import CorruptFile, DataRefused
from turbo_vaed.metrics import psnr

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FACTS, _STORE, _PSNR = "teacher.json", "teacher.zarr", "psnr"


def teacher_psnr(
    wanted: Wanted,
    *,
    batch_size: int,
    ray_address: str | None = None,
    afford: Callable[[float], None] = lambda seconds: None,
    tell: Callable[[int, int], None] = lambda done, clips: None,
) -> float:
    """dB, the mean over the validation clips, from an earlier run with the same or from Ray.

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
    wanted = dataclasses.replace(wanted, blocks=(), reconstruction=True)
    files, root = url_to_fs(wanted.targets)
    try:
        known = read_json(f"{wanted.targets}/{_FACTS}", TARGETS_REMEDY)
    except CorruptFile:
        known = {}
    if known.get("key") == wanted.key():
        return float(known[_PSNR])
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
    found = ClipArray(f"{wanted.targets}/{_STORE}", _PSNR, remedy=TARGETS_REMEDY)
    mean = float(np.mean([found[clip] for clip in clips]))
    facts = {"key": wanted.key(), _PSNR: mean, "clips": len(clips)}
    files.pipe_file(f"{root}/{_FACTS}", json.dumps(facts).encode())
    return mean


def _create(wanted: Wanted, clips: int) -> None:
    import zarr

    group = zarr.open_group(f"{wanted.targets}/{_STORE}", mode="w", zarr_format=3)
    create_clip_array(group, _PSNR, clips=clips, shape=(), dtype="float64", is_compressed=False)


class Scorer:
    """A worker of `pass_over_clips`: decodes clips and writes their PSNR."""

    def __init__(self, wanted: Wanted, *, device: Device) -> None:
        self.teacher = TargetWriter(wanted, device=device)
        self.video = ClipArray(f"{wanted.clips}/clips.zarr", "video", remedy=CLIPS_REMEDY)
        self.psnr = open_for_writing(f"{wanted.targets}/{_STORE}", _PSNR)

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Write the PSNR of the clips of `index`, and hand the indices back."""
        clips = [int(i) for i in batch["index"]]
        decoded = self.teacher.teacher.decode(self.teacher.read(clips)).float().cpu()
        for clip, video in zip(clips, decoded, strict=True):
            source = to_network(self.video[clip][None])
            self.psnr[clip] = float(psnr(frames(video[None]), frames(source)))
        return batch
