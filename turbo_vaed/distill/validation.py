"""Quality on the validation clips, never on test clips: the student's as it trains, with signs of
trouble, and the teacher's, which a run with a quality target compares it with.

Signs of trouble are pure functions that give a short text for a person, or None. They flag, and
stop nothing: each threshold lies where a healthy run does not come by chance.

Shapes: B batch, C channels, T frames, H W pixels. Videos are (B, 3, T, H, W) in [-1, 1].
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from turbo_vaed.dataset.clip_arrays import ClipArray, create_clip_array, open_for_writing
from turbo_vaed.dataset.clip_pass import Device, pass_over_clips
from turbo_vaed.dataset.latents import CLIPS_REMEDY, to_network
from turbo_vaed.distill.data import TARGETS_REMEDY, Clips, read_json
from turbo_vaed.distill.teacher_cache import CacheWriter, TeacherTargetsSpec
from turbo_vaed.errors import CorruptFile, DataRefused
from turbo_vaed.metrics import detail, flicker, ms_ssim, psnr, ssim, summarise_quality
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder
from turbo_vaed.storage.urls import filesystem

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric = Callable[[Tensor, Tensor], Tensor]
"""Of frames (T, 3, H, W) in [0, 1] and their source: a number."""
SPIKE_STEPS = 50
"""A loss is compared with so many before it: a few seconds to minutes, in which it hardly falls."""
SPIKE_LEAST_STEPS = 20
"""With fewer, their spread is not known well enough."""
SPIKE_DEVIATIONS = 6.0
"""Robust standard deviations of the logarithm: the demo's 500 steps stay below 3."""
SPIKE_LEAST_FACTOR = 1.5
"""Over the median: where batches are all alike, the deviations are next to nothing. The demo's
steps stay below 1.35."""
DEAD_SPREAD = 1e-4
"""Of the median channel's spread. Below it a channel is a constant for whatever reads it."""
DEAD_SHARE = 0.125
"""Of a block's channels. The linear start holds one of a block constant, of 8 at the least."""
LEVEL = 2 / 255
"""One 8-bit level, in [-1, 1]."""
COLOUR_LEVELS = 5.0
"""8-bit levels: 2 units of CIELAB lightness on mid grey, which is just seen side by side. Clips of
the demo's student, after its few cents, are off by up to 3.4."""
FLICKER_RATIO = 1.5
"""Error steps at the boundaries over those within: the demo's teacher and student are at 0.6 to
1.3."""
FLICKER_LEVELS = 1.0
"""8-bit levels that the boundaries must be above the rest: less is seen by nobody."""
_FACTS, _STORE, _QUALITY = "teacher.json", "teacher.zarr", "quality"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Means over the validation clips, and what the first of them shows."""

    psnr: float
    """dB."""
    ssim: float
    more: Mapping[str, float] = field(default_factory=dict)
    """With a `worst_share`: `ms_ssim`, `detail`, `flicker` of clips of two frames or more, and
    `worst_psnr`, dB, the mean over the worst share of the clips."""
    troubles: list[tuple[str, str]]
    """Kind and text; of rank 0's first clip."""
    picture: bytes | None
    """A PNG of it: source next to student, the middle frame; rank 0 only."""


@torch.no_grad()
def validate(
    student: TurboVaedDecoder,
    data: Clips,
    *,
    rank: int,
    world: int,
    device: torch.device,
    worst_share: float | None = None,
) -> Validation:
    """Decode the validation clips, every rank its part of them.

    Args:
        worst_share: of the clips, for `more`; None: that is left out, and its time saved.
    """
    indices = data.of_split("val")
    sums = torch.zeros(2, device=device)
    metrics = metrics_of(data.video.shape[1]) if worst_share is not None else {}
    per_clip = torch.zeros(len(indices), len(metrics), dtype=torch.float64, device=device)
    troubles: list[tuple[str, str]] = []
    picture = None
    for i, index in list(enumerate(indices))[rank::world]:
        clip = data.whole(index).to(device)
        video, features = student.decode_with_features(clip.latents)
        video = video.float()
        ours, source = frames(video), frames(clip.source)
        sums += torch.stack([psnr(ours, source), ssim(ours, source)])
        if metrics:
            per_clip[i] = torch.stack([of(ours, source) for of in metrics.values()])
        if index == indices[0]:
            troubles = signs_of_trouble(video, clip.source, features, student.config)
            picture = _picture(source, ours)
    if world > 1:
        dist.all_reduce(sums)
        if metrics:
            dist.all_reduce(per_clip)  # each clip is one rank's, and 0 on the others
    mean_psnr, mean_ssim = (sums / len(indices)).tolist()
    more: dict[str, float] = {}
    if worst_share is not None:
        rows = [dict(zip(metrics, row, strict=True)) for row in per_clip.tolist()]
        found = summarise_quality(rows, worst_share)
        more = {"worst_psnr": found.pop("psnr")["worst"]}
        more |= {name: summary["mean"] for name, summary in found.items()}
    return Validation(psnr=mean_psnr, ssim=mean_ssim, more=more, troubles=troubles, picture=picture)


def metrics_of(frames: int) -> dict[str, Metric]:
    """Besides SSIM, those that the gate limits for clips of so many frames, by name."""
    found: dict[str, Metric] = {"psnr": psnr, "ms_ssim": ms_ssim, "detail": detail}
    return found | {"flicker": flicker} if frames > 1 else found


def frames(video: Tensor) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1] to (T, 3, H, W) in [0, 1]."""
    return ((video[0] + 1) / 2).clamp(0, 1).transpose(0, 1)


def _picture(source: Tensor, student: Tensor) -> bytes:
    """The middle frames of two clips (T, 3, H, W) side by side."""
    from PIL import Image

    both = torch.cat([source, student], dim=-1)[len(source) // 2]
    pixels = (both * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def signs_of_trouble(
    video: Tensor, source: Tensor, features: Mapping[str, Tensor], config: DecoderConfig
) -> list[tuple[str, str]]:
    """Every sign of trouble in a decoded validation clip, as (kind, text).

    Args:
        video, source: what the student made, and what it should have made.
        features: its hidden states, of `decode_with_features`.
    """
    found = {
        "dead channels": dead_channels(features),
        "colour shift": colour_shift(video, source),
        "flicker": flicker_between_chunks(
            video, source, frames=config.temporal_compression, keeps_first=config.is_video_dc_ae
        ),
    }
    return [(kind, text) for kind, text in found.items() if text is not None]


def loss_spike(losses: Sequence[float]) -> str | None:
    """Whether the last loss stands out of those of the steps before it; positive ones count.

    Of a spike that lasts, its first step is reported.
    """
    recent = [math.log(loss) for loss in losses[-SPIKE_STEPS - 2 :] if 0 < loss < math.inf]
    if len(recent) < SPIKE_LEAST_STEPS + 2:
        return None
    before = recent[:-2]
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
    limit = median + max(SPIKE_DEVIATIONS * deviation, math.log(SPIKE_LEAST_FACTOR))
    if recent[-1] <= limit or recent[-2] > limit:
        return None
    return (
        f"the loss jumped to {math.exp(recent[-1]):.4g}, {math.exp(recent[-1] - median):.1f} times "
        f"the median of the {len(before)} steps before"
    )


def dead_channels(features: Mapping[str, Tensor]) -> str | None:
    """Blocks of which many channels put out a constant.

    Args:
        features: hidden states (B, C, T, H, W) by block.
    """
    dead = []
    for name, state in features.items():
        spread = state.float().std(dim=(0, 2, 3, 4), correction=0)
        count = int((spread <= DEAD_SPREAD * spread.median()).sum())
        if count > DEAD_SHARE * len(spread):
            dead.append(f"{count} of {len(spread)} channels of {name}")
    if not dead:
        return None
    return f"{', '.join(dead)} output a constant: that capacity is wasted"


def colour_shift(video: Tensor, source: Tensor) -> str | None:
    """Whether the clip's mean red, green or blue is off."""
    levels = ((video.float() - source.float()).mean(dim=(0, 2, 3, 4)) / LEVEL).tolist()
    if not max(map(abs, levels)) > COLOUR_LEVELS:
        return None
    red, green, blue = levels
    return f"the mean colour is off by {red:+.1f}, {green:+.1f}, {blue:+.1f} of 255 (R, G, B)"


def flicker_between_chunks(
    video: Tensor, source: Tensor, *, frames: int, keeps_first: bool
) -> str | None:
    """Whether the error jumps where the frames of one latent end and those of the next begin.

    Args:
        frames: of a latent frame.
        keeps_first: frame 0 is one of the first latent's. Else it has a latent of its own, the
            next latent's frames begin with frame 1, and the step between the two says nothing:
            a still is coded better, or worse, for that alone.
    """
    error = video.float() - source.float()
    jumps = (error[:, :, 1:] - error[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4)) / LEVEL
    after = torch.arange(1, len(jumps) + 1, device=jumps.device)  # the frame that is jumped to
    at_boundary = (after if keeps_first else after - 1) % frames == 0
    if not keeps_first:
        jumps, at_boundary = jumps[1:], at_boundary[1:]
    if at_boundary.all() or not at_boundary.any():
        return None
    between, within = jumps[at_boundary].mean().item(), jumps[~at_boundary].mean().item()
    if not (between > FLICKER_RATIO * within and between - within > FLICKER_LEVELS):
        return None
    return (
        f"the error changes by {between:.1f} of 255 from one latent frame's frames to the next's, "
        f"by {within:.1f} within: a flicker every {frames} frames"
    )


@dataclass(frozen=True, kw_only=True)
class TeacherQuality:
    """Means over the validation clips, against the source."""

    psnr: float
    """dB."""
    detail: float
    flicker: float | None = None
    """None of clips of one frame."""


def teacher_quality(
    spec: TeacherTargetsSpec,
    *,
    batch_size: int,
    ray_address: str | None = None,
    check_budget: Callable[[float], None] = lambda seconds: None,
    report_progress: Callable[[int, int], None] = lambda done, clips: None,
) -> TeacherQuality:
    """Stored by an earlier run with the same teacher and clips, or measured by Ray.

    Args:
        spec: which teacher, and which clips; its targets play no part.
        batch_size: clips of one call of the teacher.
        ray_address, check_budget: as `pass_over_clips` takes them.
        report_progress: called with how many of how many clips are done, where any has to be.

    Raises:
        DataRefused: there is no validation clip.
        CorruptFile: a file of the teacher, or of the clips and latents.
        TurboVaedError: as `pass_over_clips`, and what `check_budget` raises.
    """
    spec = replace(spec, blocks=(), reconstruction=True)
    files, root = filesystem(spec.targets)
    try:
        known = read_json(f"{spec.targets}/{_FACTS}", TARGETS_REMEDY)
    except CorruptFile:
        known = {}
    if known.get("key") == spec.key() and _QUALITY in known:  # before, there was PSNR alone
        return TeacherQuality(**known[_QUALITY])
    index = read_json(f"{spec.clips}/clips.json", CLIPS_REMEDY)["clips"]
    clips = [clip["index"] for clip in index if clip["split"] == "val"]
    if not clips:
        raise DataRefused("no clip in the val split; add videos or lower clip.frames")
    _create(spec, len(index))
    report_progress(0, len(clips))
    pass_over_clips(
        Scorer,
        (spec,),
        clips,
        batch_size=batch_size,
        label="the teacher on validation clips",
        ray_address=ray_address,
        check_budget=check_budget,
        report_progress=lambda done: report_progress(done, len(clips)),
    )
    means = {}
    for name in _metrics(_video(spec)):
        store = f"{spec.targets}/{_STORE}"
        found = ClipArray(store, name, remedy=TARGETS_REMEDY, is_cached=False)
        means[name] = float(np.mean([found[clip] for clip in clips]))
    quality = TeacherQuality(**means)
    facts = {"key": spec.key(), _QUALITY: asdict(quality), "clips": len(clips)}
    files.pipe_file(f"{root}/{_FACTS}", json.dumps(facts).encode())
    return quality


def _video(spec: TeacherTargetsSpec) -> ClipArray:
    return ClipArray(f"{spec.clips}/clips.zarr", "video", remedy=CLIPS_REMEDY)


def _metrics(video: ClipArray) -> dict[str, Metric]:
    """Those that a student's are a share or a multiple of, by name."""
    return {name: of for name, of in metrics_of(video.shape[1]).items() if name != "ms_ssim"}


def _create(spec: TeacherTargetsSpec, clips: int) -> None:
    import zarr

    group = zarr.open_group(f"{spec.targets}/{_STORE}", mode="w", zarr_format=3)
    for name in _metrics(_video(spec)):
        create_clip_array(group, name, clips=clips, shape=(), dtype="float64", is_compressed=False)


class Scorer:
    """A worker of `pass_over_clips`: decodes clips and writes their figures."""

    def __init__(self, spec: TeacherTargetsSpec, *, device: Device) -> None:
        self.teacher = CacheWriter(spec, device=device)
        self.video = _video(spec)
        self.metrics = _metrics(self.video)
        store = f"{spec.targets}/{_STORE}"
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
