"""SSIM and MS-SSIM, per frame and RGB channel, on frames in [0, 1].

Wang et al. 2004 and 2003: an 11x11 Gaussian window of sigma 1.5, population covariance,
K1 = 0.01, K2 = 0.03, data range 1, only windows that lie inside the frame. The same numbers as
scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False)` and as pytorch-msssim, which refuses frames below 161 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales, finest first (Wang et al. 2003)."""


def ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Mean SSIM of each clip over windows, channels and frames.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). In [-1, 1]; 1 for identical frames.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN, a side below 11 pixels.
    """
    check_pair(frames, reference)
    _check_side(frames)
    full, _ = _ssim_per_channel(frames.flatten(0, -4), reference.flatten(0, -4))
    return full.reshape(*frames.shape[:-3], 3).mean(dim=(-2, -1))


def ms_ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Mean MS-SSIM of each clip over channels and frames; shapes and errors as `ssim`.

    In [0, 1]: a negative factor counts as 0. Five scales where the shorter side is at least
    161 pixels; below, the finest `ms_ssim_scales` of them, their weights scaled to sum to 1
    as the five do. Figures of frames of different sizes then do not compare.
    """
    check_pair(frames, reference)
    _check_side(frames)
    x, y = frames.flatten(0, -4), reference.flatten(0, -4)
    weights = MS_SSIM_WEIGHTS[: ms_ssim_scales(min(frames.shape[-2:]))]
    product = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        full, contrast = _ssim_per_channel(x, y)
        is_last = scale == len(weights) - 1
        factor = (full if is_last else contrast).clamp(min=0)
        product = product * factor ** (weight / sum(weights) * sum(MS_SSIM_WEIGHTS))
    return product.reshape(*frames.shape[:-3], 3).mean(dim=(-2, -1))


def ms_ssim_scales(side: int) -> int:
    """How many of the five scales fit frames of this shorter side: 4 at 128, 3 at 64 pixels.

    A scale fits where, as published, the side is more than 10 windows' reach of it:
    side > (11 - 1) * 2^(scales - 1).
    """
    fitting = [n for n in range(1, 6) if side > (WINDOW - 1) * 2 ** (n - 1)]
    return max(fitting, default=0)


def _check_side(frames: Tensor) -> None:
    height, width = frames.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"frames: found {height}x{width} pixels, expected at least 11 each way")


def _halve(x: Tensor) -> Tensor:
    """Mean of 2x2 pixels; an odd side is padded with zeros that count, as pytorch-msssim does."""
    return F.avg_pool2d(x, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2))


def _ssim_per_channel(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) twice -> SSIM and its contrast-structure part, each (N, 3)."""
    mean_x, mean_y = _blur(x), _blur(y)
    xx, yy, xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variances = (_blur(x * x) - xx) + (_blur(y * y) - yy)
    covariance = _blur(x * y) - xy
    contrast = (2 * covariance + C2) / (variances + C2)
    full = (2 * xy + C1) / (xx + yy + C1) * contrast
    return full.mean(dim=(-2, -1)), contrast.mean(dim=(-2, -1))


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window over (N, 3, H, W), as two passes of one dimension."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    gauss = torch.exp(-(at**2) / (2 * SIGMA**2))
    gauss = (gauss / gauss.sum()).expand(3, 1, 1, WINDOW)
    return F.conv2d(F.conv2d(x, gauss, groups=3), gauss.transpose(2, 3), groups=3)
