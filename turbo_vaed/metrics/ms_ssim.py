"""MS-SSIM, per frame and RGB channel, on frames in [0, 1].

Wang et al. 2003: SSIM's contrast-structure part at each scale, whole SSIM at the coarsest. The
same numbers as pytorch-msssim, which refuses frames below 161 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair, in_full_precision
from turbo_vaed.metrics.ssim import WINDOW, check_side, ssim_per_channel

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, finest first."""


def ms_ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Mean MS-SSIM of each clip over channels and frames; shapes and errors as `ssim`.

    In [0, 1]: a negative factor counts as 0. Five scales where the shorter side is at least
    161 pixels; below, the finest `ms_ssim_scales` of them, their weights scaled to sum to 1
    as the five do. Figures of frames of different sizes then do not compare.
    """
    check_pair(frames, reference)
    check_side(frames)
    x, y = (in_full_precision(each).flatten(0, -4) for each in (frames, reference))
    return per_frame(x, y).reshape(*frames.shape[:-3], 3).mean(dim=(-2, -1))


def per_frame(x: Tensor, y: Tensor, least: float = 0.0) -> Tensor:
    """(N, 3, H, W) twice -> (N, 3), unchecked; factors below `least` count as it."""
    weights = WEIGHTS[: ms_ssim_scales(min(x.shape[-2:]))]
    product = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        full, contrast = ssim_per_channel(x, y)
        factor = full if scale == len(weights) - 1 else contrast
        share = weight / sum(weights) * sum(WEIGHTS)
        product = product * factor.clamp(min=least) ** share
    return product


def ms_ssim_scales(side: int) -> int:
    """How many of the five scales fit frames of this shorter side: 4 at 128, 3 at 64 pixels.

    A scale fits where, as published, the side is more than 10 windows' reach of it:
    side > (11 - 1) * 2^(scales - 1).
    """
    fitting = [n for n in range(1, 6) if side > (WINDOW - 1) * 2 ** (n - 1)]
    return max(fitting, default=0)


def _halve(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels; an odd side is padded with zeros that count, as pytorch-msssim does."""
    return F.avg_pool2d(x, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2))
