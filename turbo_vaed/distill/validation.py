"""The student on the validation clips: quality, signs of trouble, a picture. Never test clips.

Shapes: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from turbo_vaed.distill import health
from turbo_vaed.distill.data import Clips
from turbo_vaed.metrics import psnr, ssim
from turbo_vaed.models import TurboVaedDecoder


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Means over the validation clips, and what the first of them shows."""

    psnr: float
    """dB."""
    ssim: float
    troubles: list[tuple[str, str]]
    """Kind and text; of rank 0's first clip."""
    picture: bytes | None
    """A PNG of it: source beside student, the middle frame; rank 0 only."""


@torch.no_grad()
def validate(
    student: TurboVaedDecoder, data: Clips, *, rank: int, world: int, device: torch.device
) -> Validation:
    """Decode the validation clips, every rank its part of them."""
    indices = data.of_split("val")
    sums = torch.zeros(2, device=device)
    troubles: list[tuple[str, str]] = []
    picture = None
    for index in indices[rank::world]:
        clip = data.whole(index).to(device)
        video, features = student.decode_with_features(clip.latents)
        video = video.float()
        ours, source = frames(video), frames(clip.source)
        sums += torch.stack([psnr(ours, source), ssim(ours, source)])
        if index == indices[0]:
            troubles = health.look(video, clip.source, features, student.config)
            picture = _picture(source, ours)
    if world > 1:
        dist.all_reduce(sums)
    mean_psnr, mean_ssim = (sums / len(indices)).tolist()
    return Validation(psnr=mean_psnr, ssim=mean_ssim, troubles=troubles, picture=picture)


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
