"""The student on the validation clips: quality, signs of trouble, a picture. Never test clips.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from turbo_vaed.distill import health
from turbo_vaed.distill.data import Clips
from turbo_vaed.metrics import detail, flicker, ms_ssim, psnr, ssim, summarise_quality
from turbo_vaed.models import TurboVaedDecoder

Metric = Callable[[Tensor, Tensor], Tensor]
"""Of frames (T, 3, H, W) in [0, 1] and their source: a number."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Means over the validation clips, and what the first of them shows."""

    psnr: float
    """dB."""
    ssim: float
    more: Mapping[str, float] = field(default_factory=dict)
    """Where it was asked for: `ms_ssim`, `detail`, `flicker` of clips of two frames or more, and
    `worst_psnr`, dB, the mean over the worst share of the clips."""
    troubles: list[tuple[str, str]]
    """Kind and text; of rank 0's first clip."""
    picture: bytes | None
    """A PNG of it: source beside student, the middle frame; rank 0 only."""


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
        worst_share: of the clips, whose PSNR is wanted, and with it `more`; None: neither is.
    """
    indices = data.of_split("val")
    sums = torch.zeros(2, device=device)
    metrics = metrics_of(data.video.shape[1]) if worst_share is not None else {}
    of_clips = torch.zeros(len(indices), len(metrics), dtype=torch.float64, device=device)
    troubles: list[tuple[str, str]] = []
    picture = None
    for place, index in list(enumerate(indices))[rank::world]:
        clip = data.whole(index).to(device)
        video, features = student.decode_with_features(clip.latents)
        video = video.float()
        ours, source = frames(video), frames(clip.source)
        sums += torch.stack([psnr(ours, source), ssim(ours, source)])
        if metrics:
            of_clips[place] = torch.stack([of(ours, source) for of in metrics.values()])
        if index == indices[0]:
            troubles = health.look(video, clip.source, features, student.config)
            picture = _picture(source, ours)
    if world > 1:
        dist.all_reduce(sums)
        if metrics:
            dist.all_reduce(of_clips)  # each clip is one rank's, and 0 on the others
    mean_psnr, mean_ssim = (sums / len(indices)).tolist()
    more: dict[str, float] = {}
    if worst_share is not None:
        rows = [dict(zip(metrics, row, strict=True)) for row in of_clips.tolist()]
        found = summarise_quality(rows, worst_share)
        more = {"worst_psnr": found.pop("psnr")["worst"]}
        more |= {name: summary["mean"] for name, summary in found.items()}
    return Validation(psnr=mean_psnr, ssim=mean_ssim, more=more, troubles=troubles, picture=picture)


def metrics_of(frames: int) -> dict[str, Metric]:
    """Besides SSIM, those that the gate asks of clips of so many frames, by name."""
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
